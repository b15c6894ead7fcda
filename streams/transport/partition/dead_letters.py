"""The dead letter of a record that an agent cannot process, with origin, code and headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ports.log import Header, Record
from streams import topics
from streams.transport.partition.backend import NewRecord

# Bytes of a value above which a dead letter carries its size and origin instead of the value.
BY_REFERENCE_ABOVE_BYTES = 256 * 1024
# Characters of an error message (a traceback's end) kept in a header.
LONGEST_MESSAGE = 4096
# Memory of each header beside its bytes.
HEADER_COST_BYTES = 64
# Header of a dead letter without its value: size of the value at the origin.
VALUE_SIZE = "value-size"


class DeadLetterTopic(NamedTuple):
    """The topic of dead letters, with its number of partitions."""

    topic: str
    partitions: int

    def partition(self, source: int) -> int:
        """Return the partition of a dead letter from partition `source` of any topic."""
        return source % self.partitions


def origin(record: Record) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}"


def origin_marks(key: bytes | None, headers: Sequence[Header]) -> tuple[bytes | None, Sequence[Header]]:
    """Return the key and headers that a dead letter takes over; large ones stay at the origin."""
    if sum(len(name) + len(value) + HEADER_COST_BYTES for name, value in headers) > BY_REFERENCE_ABOVE_BYTES:
        headers = ()
    return (None if key is not None and len(key) > BY_REFERENCE_ABOVE_BYTES else key), headers


def dead_letter(record: Record, code: str, message: str) -> NewRecord:
    """Return the record as a dead letter: its own headers first, then the engine's. Keeps the end of a long message."""
    key, kept = origin_marks(record.key, record.headers)
    headers = [
        *kept,
        (topics.ORIGIN, origin(record).encode()),
        (topics.ERROR_CODE, code.encode()),
        (topics.ERROR_MESSAGE, message[-LONGEST_MESSAGE:].encode(errors="replace")),
    ]
    value = record.value or b""
    if len(value) > BY_REFERENCE_ABOVE_BYTES:
        headers.append((VALUE_SIZE, str(len(value)).encode()))
        value = b""
    return NewRecord(key, value, headers)
