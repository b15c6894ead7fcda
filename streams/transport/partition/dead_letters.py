"""The dead letter of a record that an agent cannot process, with origin, code and headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ports.log import LARGEST_RECORD_BYTES, Header, Record
from streams import topics
from streams.letter_budget import LetterBudget, Room
from streams.transport.partition.backend import NewRecord

# Bytes of a value above which a dead letter carries its size and origin instead of the value.
BY_REFERENCE_ABOVE_BYTES = 256 * 1024
# Bytes of key, headers and value that a letter has room for, beside its own headers.
LARGEST_COPY_BYTES = LARGEST_RECORD_BYTES - 32 * 1024
# Characters of an error message (a traceback's end) kept in a header.
LONGEST_MESSAGE = 4096
# Bytes of a key, and of all headers, that a letter takes over even when its value stays at the origin.
SMALL_MARKS_BYTES = 4096
# Memory of each header beside its bytes.
HEADER_COST_BYTES = 64
# Header of a dead letter without its value: size of the value at the origin.
VALUE_SIZE = "value-size"


class DeadLetterTopic(NamedTuple):
    """The topic of dead letters, with its number of partitions."""

    topic: str
    partitions: int
    budget: LetterBudget | None = None
    """None sets no limit."""
    keeps_origins: bool = True
    """False where the log deletes records once they are consumed: a letter then has the value of any size."""

    def partition(self, source: int) -> int:
        """Return the partition of a dead letter from partition `source` of any topic."""
        return source % self.partitions

    def letter(self, record: Record, code: str, message: str) -> NewRecord | None:
        """Return the record as a dead letter; None when so many were written in this hour that it is only counted."""
        room = Room.WHOLE if self.budget is None else self.budget.take(code, size_of(record))
        if room is Room.NONE:
            return None
        copied = BY_REFERENCE_ABOVE_BYTES if self.keeps_origins else LARGEST_COPY_BYTES - size_of(record, value=False)
        return dead_letter(record, code, message, refer=room is Room.REFERENCE, copied=copied)


def origin(record: Record) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}"


def size_of(record: Record, *, value: bool = True) -> int:
    """Bytes of a record that its dead letter would copy, with or without its value."""
    return len(record.key or b"") + (len(record.value or b"") if value else 0) + _headers_size(record.headers)


def _headers_size(headers: Sequence[Header]) -> int:
    return sum(len(name) + len(value) + HEADER_COST_BYTES for name, value in headers)


def origin_marks(
    key: bytes | None, headers: Sequence[Header], largest: int = BY_REFERENCE_ABOVE_BYTES
) -> tuple[bytes | None, Sequence[Header]]:
    """Return the key and headers that a dead letter takes over; large ones stay at the origin."""
    if _headers_size(headers) > largest:
        headers = ()
    return (None if key is not None and len(key) > largest else key), headers


def dead_letter(
    record: Record, code: str, message: str, *, refer: bool = False, copied: int = BY_REFERENCE_ABOVE_BYTES
) -> NewRecord:
    """Return the record as a dead letter: its own headers first, then the engine's. Keeps the end of a long message.

    With `refer` the value stays at the origin, however small it is; else a value of up to `copied` bytes is copied.
    """
    key, kept = origin_marks(record.key, record.headers, SMALL_MARKS_BYTES if refer else BY_REFERENCE_ABOVE_BYTES)
    headers = [
        *kept,
        (topics.ORIGIN, origin(record).encode()),
        (topics.ERROR_CODE, code.encode()),
        (topics.ERROR_MESSAGE, message[-LONGEST_MESSAGE:].encode(errors="replace")),
    ]
    value = record.value or b""
    if refer or len(value) > copied:
        headers.append((VALUE_SIZE, str(len(value)).encode()))
        value = b""
    return NewRecord(key, value, headers)
