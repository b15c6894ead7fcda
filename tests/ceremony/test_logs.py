"""The log says what failed and where, never what a client has put into it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from faust.agents.actor import Actor

from ceremony.logs import QUIET_SECONDS, configure


@pytest.fixture
def as_before() -> Iterator[None]:
    """What `configure` changes of the process is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def failing(record: str) -> None:
    raise ValueError(len(record))


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("style", ["console", "json"])
def test_a_traceback_shows_no_values(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", style)
    record = "what nobody should read"
    try:
        failing(record)
    except ValueError:
        structlog.get_logger("a").exception("failed")
    said = capsys.readouterr().err
    assert "ValueError: 23" in said and "in failing" in said
    assert record not in said


@pytest.mark.usefixtures("as_before")
def test_faust_adds_no_traceback_to_our_line_about_a_poison_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Its logger keeps its name; the line of ours that names the record is `Part._bury`."""
    configure("INFO", "console")
    Actor.logger.exception("Crashed reason=%r", ValueError("poison"))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("as_before")
def test_calls_that_fail_one_after_the_other_are_one_line_and_a_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an outage every call fails alike; other lines are not held back by it."""
    configure("INFO", "json")
    now = 1_000.0
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.time_ns", lambda: int(now * 1e9))
    logger = structlog.get_logger("a")
    for number in range(100):
        logger.warning("append_failed", reason=str(number))
    logger.warning("something_else")
    now += QUIET_SECONDS
    logger.warning("append_failed", reason="later")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    said = [(line["event"], line.get("reason"), line.get("more")) for line in lines]
    assert said == [("append_failed", "0", None), ("something_else", None, None), ("append_failed", "later", 99)]


@pytest.mark.usefixtures("as_before")
def test_a_line_that_is_not_wanted_is_dropped_before_anything_is_made_of_it() -> None:
    """Each attempt has one at level debug; a value that is never looked at need not be one that can be shown."""
    configure("INFO", "json")
    with structlog.contextvars.bound_contextvars(instance="c1"):
        processors = structlog.get_config()["processors"]
        with pytest.raises(structlog.DropEvent):
            processors[0](logging.getLogger("a"), "debug", {"event": "step_outcome"})
