"""Spans of traces, as the engine hands them to an exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from ports.traces import TraceContext


class SpanKind(StrEnum):
    """The relation of a span to its neighbours, as OpenTelemetry names it."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"
    PRODUCER = "PRODUCER"
    CONSUMER = "CONSUMER"


class TraceSpan(NamedTuple):
    """One finished span. Times are milliseconds since the epoch."""

    name: str
    kind: SpanKind
    context: TraceContext
    parent: TraceContext | None
    start: int
    end: int
    attributes: Mapping[str, str | int]
    """Ids, names and codes only: no text of a person, an agent or an error."""
    links: Sequence[TraceContext] = ()
    error_code: str = ""
    """Set when the work failed."""


class SpanSink(Protocol):
    """Takes spans for export."""

    def sampled(self, trace_id: str) -> bool:
        """Return whether a trace is exported that no caller has decided about; every worker decides alike."""

    def has_room(self) -> bool:
        """Return whether spans are taken now; if not, they need not be made."""

    def export(self, spans: Sequence[TraceSpan]) -> None:
        """Queue spans, without waiting; those for which there is no room are dropped. It raises no error."""
