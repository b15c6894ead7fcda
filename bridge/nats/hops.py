"""Times the way of an event: from the append of its command until JetStream has it.

The events that are acknowledged in one turn of the loop count with the age of the last of them. The first hop lies
between two append times of the log; the others end now, by the clock of this host, so a host whose clock is wrong shows
here, and nowhere else.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from bridge.nats import metrics
from ports.log import Record


class _Stamped(msgspec.Struct):
    """The part of an envelope that is read here."""

    timestamp: str = ""


_decode = msgspec.json.Decoder(_Stamped).decode


def observe(record: Record, count: int, now_ms: float) -> None:
    """Count the hops of so many events, of which the record is the last."""
    if (appended := command_time(record.value or b"")) is not None:
        metrics.HOP_FOLD.add((record.timestamp - appended) / 1000, count)
        metrics.HOP_TO_NATS.add((now_ms - record.timestamp) / 1000, count)
        metrics.HOP_WHOLE.add((now_ms - appended) / 1000, count)


def command_time(envelope: bytes) -> float | None:
    """Return the append time of an event's command in milliseconds; None for bytes that do not tell."""
    try:
        return datetime.fromisoformat(_decode(envelope).timestamp).timestamp() * 1000
    except (msgspec.DecodeError, ValueError, UnicodeDecodeError, RecursionError):
        return None
