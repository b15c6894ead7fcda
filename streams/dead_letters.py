"""Dead letters: the records of the topic `deadletters`, written, read back and announced."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ports.log import Header, Record
from ports.provenance import NOWHERE, Provenance, provenance_of
from streams import topics
from streams.envelope import envelope
from streams.transport.partition.dead_letters import origin_marks

DEADLETTER_SUBJECT = "ceremony.deadletter"
# Bytes of the largest value that a dead letter contains; a larger one is only referred to by its origin.
DEADLETTER_BODY_BYTES = 256 * 1024
# Characters of a dead letter's message.
LONGEST_ERROR_MESSAGE = 4096
# Characters of the message of an announced dead letter.
LONGEST_ANNOUNCED_MESSAGE = 500
# Characters of key, topic and code in a list; another program may have written longer ones, and a page must fit.
LONGEST_NAME = 1024
# Digits that always fit a signed 64-bit number; half of them always fit a 32-bit one.
MAX_DIGITS = 18
# Header of a dead letter without its value: size of the original value in bytes.
VALUE_SIZE = "value-size"

_OURS = frozenset({topics.ORIGIN, topics.ERROR_CODE, topics.ERROR_MESSAGE, VALUE_SIZE})
# Name of a topic or of a NATS stream.
_NAME = re.compile(r"[^\s\x00-\x1f\ufffd]{1,255}")
# specification 1.1; a definition's key is a hash, without a colon.
_INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}:[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class DeadLetterRecord(NamedTuple):
    """A record that could not be processed and was set aside."""

    topic: str
    """The topic or NATS stream of its origin."""
    partition: int
    """0 for a NATS stream."""
    offset: int
    """Offset in the partition, or sequence in the stream."""
    code: str
    """Stable snake_case code."""
    message: str
    timestamp: int
    """Append time of the dead letter in milliseconds since the epoch, 0 before it is in the log."""
    size: int
    """Bytes of the original value."""
    key: bytes | None
    value: bytes | None
    """The original value; None above 256 KiB, when it is found only at the origin."""
    headers: tuple[Header, ...]
    """Headers of the original record."""

    @property
    def origin(self) -> str:
        """`<topic or stream>/<partition>/<offset or sequence>`."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def dead_letter_record(
    topic: str,
    partition: int,
    offset: int,
    code: str,
    message: str,
    *,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[Header] = (),
    refer: bool = False,
) -> tuple[bytes | None, bytes, list[Header]]:
    """Return the record of `deadletters`: key and headers of the original, and its value up to 256 KiB.

    With `refer` the value stays at the origin, however small it is.
    """
    body = value or b""
    key, headers = origin_marks(key, list(headers))
    ours = [
        (topics.ORIGIN, f"{topic}/{partition}/{offset}".encode()),
        (topics.ERROR_CODE, code.encode()),
        (topics.ERROR_MESSAGE, message[:LONGEST_ERROR_MESSAGE].encode(errors="replace")),
    ]
    if refer or len(body) > DEADLETTER_BODY_BYTES:
        ours.append((VALUE_SIZE, b"%d" % len(body)))
        body = b""
    # Ours last: of a dead letter that becomes one again, the newer headers count.
    return key, body, [*headers, *ours]


def dead_letter_of(
    record: Record, code: str, message: str, *, refer: bool = False
) -> tuple[bytes | None, bytes, list[Header]]:
    """Return the record of `deadletters` for a record of the log."""
    return dead_letter_record(
        record.topic,
        record.partition,
        record.offset,
        code,
        message,
        key=record.key,
        value=record.value,
        headers=record.headers,
        refer=refer,
    )


def decode_dead_letter(
    key: bytes | None, value: bytes | None, headers: Sequence[Header], timestamp: int = 0
) -> DeadLetterRecord:
    """Read a record of `deadletters`. Missing headers give `unknown`, -1 or 0."""
    found = dict(headers)
    topic, partition, offset = _split_origin(found.get(topics.ORIGIN, b"").decode(errors="replace"))
    referred = found.get(VALUE_SIZE, b"")
    return DeadLetterRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        code=found.get(topics.ERROR_CODE, b"unknown").decode(errors="replace"),
        message=found.get(topics.ERROR_MESSAGE, b"").decode(errors="replace"),
        timestamp=timestamp,
        size=int(referred) if referred.isdigit() and len(referred) <= MAX_DIGITS else len(value or b""),
        key=key,
        value=None if referred else value,
        headers=tuple(header for header in headers if header[0] not in _OURS),
    )


def placed_letter(record: Record) -> DeadLetterRecord:
    """Read a record of `deadletters`; a record without a valid origin is its own origin."""
    letter = decode_dead_letter(record.key, record.value, record.headers, record.timestamp)
    if letter.partition < 0 or not _NAME.fullmatch(letter.topic):
        letter = letter._replace(topic=record.topic, partition=record.partition, offset=record.offset)
    return letter


def letter_of(record: Record) -> DeadLetterRecord:
    """Return `placed_letter` for a list or an announcement: with code, reason and bounded texts."""
    letter = placed_letter(record)
    return letter._replace(
        topic=letter.topic[:LONGEST_NAME],
        code=letter.code[:LONGEST_NAME] or "unknown",
        message=letter.message[:LONGEST_ERROR_MESSAGE] or "no reason was given",
        key=None if letter.key is None else letter.key[:LONGEST_NAME],
    )


def dead_letter_event(letter: DeadLetterRecord) -> tuple[str, bytes]:
    """Return key and envelope of the `ceremony.deadletter` that announces a dead letter; its key names the origin."""
    key = f"deadletter/{letter.origin}"
    payload = {
        "origin": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "code": letter.code,
        "message": _for_outside(letter.message),
        "size": letter.size,
    }
    correlation = dict(letter.headers).get(topics.CORRELATION_ID, b"").decode(errors="replace")
    return key, envelope(DEADLETTER_SUBJECT, payload, key, correlation or key, letter.timestamp)


def dead_letter_provenance(letter: DeadLetterRecord) -> Provenance:
    """Return the ceremony of a dead letter by key and headers of its record; an empty one if it belongs to none."""
    key = (letter.key or b"").decode(errors="replace")
    return provenance_of(key, dict(letter.headers)) if _INSTANCE_ID.fullmatch(key) else NOWHERE


def _for_outside(message: str) -> str:
    """Return a message of one line. A traceback stays with the dead letter, as it may show internal values."""
    lines = message.strip().splitlines()
    return lines[0][:LONGEST_ANNOUNCED_MESSAGE] if len(lines) == 1 else "the details are with the dead letter"


def _split_origin(origin: str) -> tuple[str, int, int]:
    topic, _, rest = origin.partition("/")
    partition, _, offset = rest.partition("/")
    if partition.isdecimal() and offset.isdecimal() and len(partition) < MAX_DIGITS // 2 and len(offset) <= MAX_DIGITS:
        return topic, int(partition), int(offset)
    return origin or "unknown", -1, -1
