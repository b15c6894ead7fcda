"""The log says what failed and where, never what a client has put into it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from faust.agents.actor import Actor

from streams.logs import configure


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
