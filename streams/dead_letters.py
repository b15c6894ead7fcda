"""Dead letters: the records of the topic `deadletters`, written, read back and announced."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ports.log import Header, Record
from streams import topics
from streams.envelope import envelope
from streams.transport.partition.dead_letters import origin_marks

DEADLETTER_SUBJECT = "ceremony.deadletter"
# Bytes of a value that a dead letter still carries; a larger one is named by its origin only.
DEADLETTER_BODY_BYTES = 256 * 1024
# Characters of a dead letter's message.
LONGEST_ERROR_MESSAGE = 4096
# Characters of the message of an announced dead letter.
LONGEST_ANNOUNCED_MESSAGE = 500
# Characters of key, topic and code of a dead letter; another program may have written more, and a page must fit.
LONGEST_NAME = 1024
# Digits of a number that fits 64 bits for certain; of a partition, half of that fits 32.
MAX_DIGITS = 18
# Header of a dead letter by reference: bytes of the original value, which was left out.
VALUE_SIZE = "value-size"

_OURS = frozenset({topics.ORIGIN, topics.ERROR_CODE, topics.ERROR_MESSAGE, VALUE_SIZE})
# A topic, or a NATS stream.
_NAME = re.compile(r"[^\s\x00-\x1f\ufffd]{1,255}")


class DeadLetterRecord(NamedTuple):
    """What could not be processed and was set aside."""

    topic: str
    """The topic, or NATS stream, that it came from."""
    partition: int
    """0 for a NATS stream."""
    offset: int
    """Offset in the partition, or sequence in the stream."""
    code: str
    """Stable snake_case code."""
    message: str
    timestamp: int
    """When it was set aside: milliseconds since the epoch, 0 before the log has it."""
    size: int
    """Bytes of the original value."""
    key: bytes | None
    value: bytes | None
    """The original value, or None above 256 KiB: then the origin says where to find it."""
    headers: tuple[Header, ...]
    """Of the original."""

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
) -> tuple[bytes | None, bytes, list[Header]]:
    """The record of `deadletters`; the original's key and headers are kept, its value up to 256 KiB."""
    body = value or b""
    key, headers = origin_marks(key, list(headers))
    ours = [
        (topics.ORIGIN, f"{topic}/{partition}/{offset}".encode()),
        (topics.ERROR_CODE, code.encode()),
        (topics.ERROR_MESSAGE, message[:LONGEST_ERROR_MESSAGE].encode(errors="replace")),
    ]
    if len(body) > DEADLETTER_BODY_BYTES:
        ours.append((VALUE_SIZE, b"%d" % len(body)))
        body = b""
    # Ours last: where a dead letter becomes one again, the newer word counts.
    return key, body, [*headers, *ours]


def dead_letter_of(record: Record, code: str, message: str) -> tuple[bytes | None, bytes, list[Header]]:
    """The record of `deadletters` for a record of the log."""
    return dead_letter_record(
        record.topic,
        record.partition,
        record.offset,
        code,
        message,
        key=record.key,
        value=record.value,
        headers=record.headers,
    )


def decode_dead_letter(
    key: bytes | None, value: bytes | None, headers: Sequence[Header], timestamp: int = 0
) -> DeadLetterRecord:
    """A dead letter from a record of `deadletters`. Headers that are missing leave `unknown`, -1 or 0."""
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
    """The dead letter in a record of `deadletters`; what is none of ours is one itself, at its own place."""
    letter = decode_dead_letter(record.key, record.value, record.headers, record.timestamp)
    if letter.partition < 0 or not _NAME.fullmatch(letter.topic):
        letter = letter._replace(topic=record.topic, partition=record.partition, offset=record.offset)
    return letter


def letter_of(record: Record) -> DeadLetterRecord:
    """`placed_letter` for a list or an announcement: with code and reason, and bounded texts."""
    letter = placed_letter(record)
    return letter._replace(
        topic=letter.topic[:LONGEST_NAME],
        code=letter.code[:LONGEST_NAME] or "unknown",
        message=letter.message[:LONGEST_ERROR_MESSAGE] or "no reason was given",
        key=None if letter.key is None else letter.key[:LONGEST_NAME],
    )


def dead_letter_event(letter: DeadLetterRecord) -> tuple[str, bytes]:
    """Key and envelope of the `ceremony.deadletter` that announces a dead letter; the key is its origin's."""
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


def _for_outside(message: str) -> str:
    """One line; a traceback stays with the dead letter, for it may show values that nobody outside should see."""
    lines = message.strip().splitlines()
    return lines[0][:LONGEST_ANNOUNCED_MESSAGE] if len(lines) == 1 else "the details are with the dead letter"


def _split_origin(origin: str) -> tuple[str, int, int]:
    topic, _, rest = origin.partition("/")
    partition, _, offset = rest.partition("/")
    if partition.isdecimal() and offset.isdecimal() and len(partition) < MAX_DIGITS // 2 and len(offset) <= MAX_DIGITS:
        return topic, int(partition), int(offset)
    return origin or "unknown", -1, -1
