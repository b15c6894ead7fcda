"""The envelope of every message to NATS (specification 16.1), and the records of `events` that carry it.

The value of an `events` record is the finished envelope: it is encoded once, and the NATS bridge forwards its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

from ports.errors import CeremonyError
from ports.log import Header
from ports.redaction import Redactor
from streams import topics
from tables.effects import Event

PRODUCER = "ceremony-engine"

# Key, value and headers of a record of `events`.
EventRecord = tuple[bytes, bytes, list[Header]]

# Fields by which consumers know a message again, and route it.
_IDENTITY = frozenset({"event_type", "idempotency_key", "correlation_id", "timestamp", "producer", "causation_id"})
# Bytes of envelopes that are searched together; the last of them may exceed it.
SEARCHED_TOGETHER_BYTES = 256 * 1024
_NOTHING: Mapping[str, str] = {}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    """Field order and names of specification 16.1."""

    event_type: str
    payload: Mapping[str, Any]
    idempotency_key: str
    correlation_id: str
    timestamp: str
    producer: str
    metadata: Mapping[str, Any]


class _CausedEnvelope(_Envelope, frozen=True, gc=False):
    causation_id: str


class EnvelopeInvalid(CeremonyError):
    """A mandatory field of an envelope is empty: a bug of the caller."""

    def __init__(self, field: str) -> None:
        super().__init__("envelope_invalid", f"{field} is empty")


@lru_cache(maxsize=256)  # all records of a batch have one time
def iso(at_ms: int) -> str:
    """Format milliseconds since the epoch as ISO-8601 in UTC: `2026-01-31T12:00:00.123Z`."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}Z"


def envelope(
    event_type: str,
    payload: Mapping[str, Any],
    key: str,
    correlation_id: str,
    at: int | str,
    causation_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Encode an envelope as UTF-8 JSON. `at`: milliseconds since the epoch, or ISO-8601. Raises EnvelopeInvalid."""
    stamp = iso(at) if isinstance(at, int) else at
    if not (event_type and key and correlation_id):
        empty = "event_type" if not event_type else "correlation_id" if key else "idempotency_key"
        raise EnvelopeInvalid(empty)
    beside = metadata or _NOTHING
    if causation_id:
        return _encode(_CausedEnvelope(event_type, payload, key, correlation_id, stamp, PRODUCER, beside, causation_id))
    return _encode(_Envelope(event_type, payload, key, correlation_id, stamp, PRODUCER, beside))


def event_record(
    effect: Event, command_offset: int, ordinal: int, fold: int, beside: Iterable[Header] = ()
) -> EventRecord:
    """Return the record of `events` for an effect.

    `command_offset` is the offset of the command that caused it, `ordinal` its place among that command's effects: with
    `fold` they tell how far a partition has been sent. `beside`: headers that name the ceremony.
    """
    value = envelope(
        effect.subject, effect.payload, effect.id, effect.correlation_id, effect.at, metadata=effect.metadata
    )
    headers = [
        (topics.SUBJECT, effect.subject.encode()),
        (topics.EFFECT_ID, effect.id.encode()),
        (topics.CORRELATION_ID, effect.correlation_id.encode()),
        (topics.FOLD, b"%d" % fold),
        (topics.COMMAND_OFFSET, b"%d" % command_offset),
        (topics.ORDINAL, b"%d" % ordinal),
        *beside,
    ]
    return effect.instance_id.encode(), value, headers


def redacted_envelopes(envelopes: Sequence[bytes], redactor: Redactor) -> Sequence[bytes]:
    """Return envelopes without secrets. Many are searched together, which costs a third of searching each."""
    found = list(envelopes)
    for piece in _pieces(found):
        if redactor.suspicious(b"\n".join(found[piece])):
            found[piece] = [
                redacted_envelope(one, redactor) if redactor.suspicious(one) else one for one in found[piece]
            ]
    return found


def _pieces(envelopes: Sequence[bytes]) -> Iterator[slice]:
    begin = size = 0
    for end, one in enumerate(envelopes, 1):
        size += len(one)
        if size >= SEARCHED_TOGETHER_BYTES:
            yield slice(begin, end)
            begin, size = end, 0
    if begin < len(envelopes):
        yield slice(begin, len(envelopes))


def redacted_envelope(data: bytes, redactor: Redactor) -> bytes:
    """Return an envelope without secrets; its ids, names and times stay, and so does one that holds nothing to redact.

    Bytes that cannot be decoded as a JSON object are redacted as a text.
    """
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):  # also a number of thousands of digits, which Python does not convert
        return redactor.data(data)
    if not isinstance(whole, dict):
        return redactor.data(data)
    changed = False
    for name in whole.keys() - _IDENTITY:
        redacted = redactor.redact(whole[name])
        if redacted.findings:
            whole[name], changed = redacted.value, True
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") if changed else data
