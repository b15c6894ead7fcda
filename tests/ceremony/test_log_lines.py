"""Lines of the journal reach the log in one write, in the form of all others, and redacted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from unittest import mock

import pytest
import structlog

from ceremony.log_lines import LogLines
from ceremony.logs import configure
from ports.lines import LineLevel, LogLine
from steps.secrets.redactor import TextRedactor
from streams.journal import Journal
from tests.steps.secrets.planted import planted
from tests.streams.fakes import HandClock
from tests.streams.test_journal import BODY, Told
from tests.tables.world import definition_of

PROMPT = "Weigh every risk of the story as a patient architect would do"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Restore the state of the process that `configure` changes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)


def line(level: LineLevel = LineLevel.INFO, **fields: Any) -> LogLine:
    return {"event": "step_started", "level": level, "instance": "c1:s1", **fields}


def test_a_line_of_json_has_the_fields_of_every_other_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "json")
    structlog.get_logger("a").info("other", instance="c1:s1")
    LogLines(TextRedactor(), HandClock()).write(
        [line(step="one", attempt=2), line(guards=[{"guard": "g", "result": "true"}])]
    )
    other, *told = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert {"event", "level", "logger", "timestamp", "instance"} == other.keys()
    assert all(other.keys() <= one.keys() for one in told)
    assert told[0]["level"] == other["level"] and (told[0]["step"], told[0]["attempt"]) == ("one", 2)
    assert all(datetime.fromisoformat(one["timestamp"]).tzinfo for one in (other, *told))


def test_a_line_for_people_is_one_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "console")
    LogLines(TextRedactor(), HandClock()).write([line(reason="no\nluck", step="one"), line()])
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(r"instance=c1:s1 reason='no\nluck' step=one") and "step_started" in second
    assert "\033" not in first


def test_colours_are_those_of_every_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    configure("INFO", "console")
    LogLines(TextRedactor(), HandClock()).write([line()])
    assert "\033[" in capsys.readouterr().err


def test_lines_below_the_level_are_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    configure("WARNING", "json")
    sink = LogLines(TextRedactor(), HandClock())
    assert (sink.wants(LineLevel.INFO), sink.wants(LineLevel.WARNING)) == (False, True)
    sink.write([line(), line(LineLevel.WARNING)])
    (written,) = capsys.readouterr().err.splitlines()
    assert json.loads(written)["level"] == "warning"


@pytest.mark.parametrize("style", ["console", "json"])
def test_no_line_of_the_journal_shows_a_secret_or_a_raw_prompt(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is in a reason, between lines that hold none."""
    # specification 27.10
    configure("INFO", style)
    redactor = TextRedactor()
    redactor.learn((PROMPT,))
    secrets = list(planted())
    lines = [part for one in secrets for part in (line(reason=one.text), line(reason="no secret"))]
    LogLines(redactor, HandClock()).write([*lines, line(reason=PROMPT), line(url="nats://user:hunter2@host:4222 down")])
    written = capsys.readouterr().err
    plain = written.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
    for one in secrets:
        assert one.secret not in plain, one.rule
    assert PROMPT[:40] not in written and "hunter2" not in written
    assert "[redacted:raw_prompt]" in written
    assert len(written.splitlines()) == len(lines) + 2
    if style == "json":
        told = [json.loads(text) for text in written.splitlines()]
        assert [one["reason"] for one in told if one.get("reason") == "no secret"] == ["no secret"] * len(secrets)


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_failed_step_with_a_secret_in_its_message_is_told_redacted(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # specification 27.10
    configure("INFO", style)
    for one in planted():
        world = Told(definition_of(BODY))
        world.start(score=1)
        world.outcome("one", "failed", error_code="broken", error_message=one.text, retryable=True)
        world.cancel(reason=one.text)
        Journal(LogLines(TextRedactor(), HandClock()), HandClock()).write(world.folded)
        written = capsys.readouterr().err
        assert one.secret not in written.replace("\\n", "\n").replace('\\"', '"'), one.rule
        assert "ceremony.step.retrying" in written and "ceremony.cancelled" in written


def test_a_line_that_json_cannot_hold_is_written_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "json")
    LogLines(TextRedactor(), HandClock()).write([line(odd=object()), line(reason="fine")])
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file")])
def test_a_reader_that_has_gone_ends_nothing(error: Exception) -> None:
    configure("INFO", "json")
    handler: Any = logging.getLogger().handlers[0]
    handler.stream = mock.Mock(**{"write.side_effect": error})
    LogLines(TextRedactor(), HandClock()).write([line()])
    handler.stream.write.assert_called_once()


def test_without_our_handler_lines_go_to_structlog() -> None:
    logging.getLogger().handlers[:] = []
    with structlog.testing.capture_logs() as logs:
        LogLines(TextRedactor(), HandClock()).write([line(step="one")])
    assert logs == [{"event": "step_started", "log_level": "info", "instance": "c1:s1", "step": "one"}]
