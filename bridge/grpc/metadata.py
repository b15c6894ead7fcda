"""The correlation id and the trace in gRPC metadata: read from a call, sent with an answer and with outgoing calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import grpc.aio

from ports.traces import parse_traceparent

# specification 10.14
CORRELATION_KEY = "x-correlation-id"
# W3C Trace Context; specification 31.1
TRACE_KEY = "traceparent"


def correlation_metadata(correlation_id: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries the correlation id; empty without one."""
    return ((CORRELATION_KEY, ascii_value(correlation_id)),) if correlation_id else ()


def correlation_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the correlation id in a call's metadata, or an empty string."""
    for key, value in metadata:
        if key == CORRELATION_KEY:
            return (value if isinstance(value, str) else value.decode(errors="replace")).strip()
    return ""


def trace_metadata(traceparent: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries the trace; empty without one."""
    return ((TRACE_KEY, traceparent),) if parse_traceparent(traceparent) else ()


def trace_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the `traceparent` in a call's metadata as version 00; empty without a valid one."""
    for key, value in metadata:
        if key == TRACE_KEY and isinstance(value, str) and (found := parse_traceparent(value.strip())) is not None:
            return found.traceparent
    return ""


async def send_correlation_id(context: grpc.aio.ServicerContext[Any, Any], correlation_id: str) -> None:
    """Send the ceremony's correlation id ahead of the answer's body."""
    await context.send_initial_metadata(correlation_metadata(correlation_id))


def ascii_value(text: str) -> str:
    """Percent-encode `text` where needed: gRPC metadata values hold printable ASCII only."""
    return text if text.isascii() and text.isprintable() else quote(text, safe=" :/@+,;=()[]", errors="replace")
