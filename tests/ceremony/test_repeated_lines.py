"""Lines are held back and counted while other threads log."""

from __future__ import annotations

import logging

import pytest

from ceremony import repeated_lines
from ceremony.repeated_lines import Seldom


def record(event: str, seconds: float) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": {"event": event}, "levelno": logging.INFO, "created": seconds})


def test_a_line_of_a_new_kind_may_come_during_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 30.4
    seldom, includes = Seldom(), repeated_lines._Span.includes

    def interrupted(span: repeated_lines._Span, now: float) -> bool:
        monkeypatch.setattr(repeated_lines._Span, "includes", includes)
        seldom.filter(record("new", 100.0))
        return includes(span, now)

    for event in ("a", "b"):
        seldom.filter(record(event, 0.0))
    monkeypatch.setattr(repeated_lines._Span, "includes", interrupted)
    seldom.report(100.0)
    assert list(seldom._spans) == ["new"]
