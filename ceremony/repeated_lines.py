"""Holds back log lines that come again and again, and counts them: in an outage there is one for every call."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import structlog

# Their debug lines hold users, queries and whole rows: they log from WARNING up at every level.
DISCREET = ("neo4j", "redis")
# Libraries whose lines become the event `library_warning`: a line of theirs is a hint, the worker's state is in lines
# of our own. The loggers of Python's own modules `asyncio` and `warnings` count as such.
LIBRARIES = {name: name for name in ("aiokafka", "asyncio", "grpc", "nats", *DISCREET)} | {"py": "python"}
# Events of ours about a failed call: one line is enough. The outage of the neighbour has lines of its own.
MANY = frozenset(
    {
        "append_failed",
        "diagnosis_unanswered",
        "forwarding_failed",
        "heartbeat_failed",
        "heartbeats_not_read",
        "listing_failed",
        "timers_wait",
    }
)
# Lines of each kind in QUIET_SECONDS: of MANY and of a library, and of any other one.
MOST_OF_MANY, MOST = 1, 20
QUIET_SECONDS = 60.0
# Kinds that are told apart; a library may put anything into its lines.
MOST_KINDS = 1000
LEFT_OUT = "lines_left_out"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Span:
    began: float
    shown: int = 0
    held_back: int = 0

    def includes(self, now: float) -> bool:
        return 0 <= now - self.began < QUIET_SECONDS


class Seldom(logging.Filter):
    """Lets through the first lines of each kind in a span. `more` of the next one counts those held back before it."""

    def __init__(self) -> None:
        super().__init__()
        self._spans: dict[str, _Span] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        kind, most = _kind(record)
        if kind not in self._spans and len(self._spans) >= MOST_KINDS:
            kind = "others"
        span = self._spans.get(kind)
        if span is None or not span.includes(record.created):
            if span is not None and span.held_back:
                _count(record, span.held_back)
            span = self._spans[kind] = _Span(record.created)
        if span.shown >= most:
            span.held_back += 1
            return False
        span.shown += 1
        return True

    def report(self, now: float) -> None:
        """Tell of the lines held back in spans that have ended, and forget those spans."""
        spans = list(self._spans.items())  # other threads log meanwhile
        over = {kind: span for kind, span in spans if not span.includes(now)}
        for kind, span in over.items():
            if self._spans.get(kind) is span:
                del self._spans[kind]
        held_back = Counter({kind: span.held_back for kind, span in over.items() if span.held_back})
        if held_back:
            log.warning(LEFT_OUT, seconds=round(QUIET_SECONDS), count=held_back.total(), lines=dict(held_back))


def library_of(logger: str) -> str:
    """Return the name of the library that logs as `logger`; empty for our own."""
    return LIBRARIES.get(logger.partition(".")[0], "")


def _kind(record: logging.LogRecord) -> tuple[str, int]:
    """Return the kind of a line, and how many of it a span may have."""
    if isinstance(record.msg, dict):
        event = str(record.msg.get("event"))
        return event, MOST_OF_MANY if event in MANY else MOST
    form = record.getMessage() if record.msg == "%s" else str(record.msg)
    most = MOST_OF_MANY if library_of(record.name) and record.levelno >= logging.WARNING else MOST
    return f"{record.name}: {form.partition(chr(10))[0]}", most


def _count(record: logging.LogRecord, more: int) -> None:
    if isinstance(record.msg, dict):
        record.msg["more"] = more
    else:
        record.more = more
