"""The correlation id in gRPC metadata: read from a call, sent with an answer and with calls of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import grpc.aio

CORRELATION_KEY = "x-correlation-id"
"""The key of specification 10.14."""


def correlation_metadata(correlation_id: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries it; none where there is none."""
    return ((CORRELATION_KEY, ascii_value(correlation_id)),) if correlation_id else ()


def correlation_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The correlation id in a call's metadata, or an empty string."""
    for key, value in metadata:
        if key == CORRELATION_KEY:
            return (value if isinstance(value, str) else value.decode(errors="replace")).strip()
    return ""


async def send_correlation_id(context: grpc.aio.ServicerContext[Any, Any], correlation_id: str) -> None:
    """The ceremony's correlation id travels with the answer, before its body."""
    await context.send_initial_metadata(correlation_metadata(correlation_id))


def ascii_value(text: str) -> str:
    """`text` as a gRPC metadata value, which holds printable ASCII only: everything else is percent-encoded."""
    return text if text.isascii() and text.isprintable() else quote(text, safe=" :/@+,;=()[]", errors="replace")
