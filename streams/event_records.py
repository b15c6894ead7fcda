"""Reads records of the topic `events`: the events that they hold, and their order."""

from __future__ import annotations

import msgspec

from ports.history import HistoryEvent
from ports.log import Record
from streams import topics

# Subject of the first event of every ceremony.
STARTED = "ceremony.started"


class _ShownEnvelope(msgspec.Struct):
    timestamp: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    metadata: msgspec.Raw = msgspec.Raw(b"{}")


_decode = msgspec.json.Decoder(_ShownEnvelope).decode


def order_of(effect_id: str) -> tuple[int, int, int] | None:
    """Return fold, version and ordinal of `<instance>/<version>/<ordinal>@<fold>`; None for an id of another form.

    Within one fold number, events of a ceremony are written in this order; after a crash some are written again.
    """
    rest, _, ordinal = effect_id.rpartition("/")
    ordinal, _, fold = ordinal.partition("@")
    version = rest.rpartition("/")[2]
    if not all(
        part.isascii() and part.isdigit() and len(part) < topics.MOST_DIGITS for part in (version, ordinal, fold)
    ):
        return None
    return int(fold), int(version), int(ordinal)


def header(record: Record, name: str) -> str:
    """Return the value of a header, "" without it."""
    return next((value.decode(errors="replace") for key, value in record.headers if key == name), "")


def begins(record: Record) -> bool:
    """Return whether this is the first event of a ceremony."""
    return header(record, topics.SUBJECT) == STARTED


def is_event_of(record: Record, key: bytes) -> bool:
    return record.key == key and bool(header(record, topics.EFFECT_ID))


def event_of(record: Record, value: bytes | None = None) -> HistoryEvent:
    """Return an event for display; one that cannot be decoded shows only its headers.

    `value`: the envelope to show instead of the record's own.
    """
    try:
        envelope = _decode(value or record.value or b"{}")
    except msgspec.DecodeError:
        envelope = _ShownEnvelope()
    offset = header(record, topics.COMMAND_OFFSET)
    return HistoryEvent(
        subject=header(record, topics.SUBJECT),
        at=envelope.timestamp,
        effect_id=header(record, topics.EFFECT_ID),
        correlation_id=header(record, topics.CORRELATION_ID),
        payload=bytes(envelope.payload).decode(errors="replace"),
        metadata=bytes(envelope.metadata).decode(errors="replace"),
        partition=record.partition,
        command_offset=int(offset) if offset.isdigit() else -1,
    )
