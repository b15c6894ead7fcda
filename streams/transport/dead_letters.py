"""What becomes of a record that nobody can handle: its dead letter, with origin, code and headers."""

from __future__ import annotations

from typing import NamedTuple

from streams import topics
from streams.transport.contract import Out, Record

BY_REFERENCE_ABOVE = 256 * 1024
"""Bytes of a value above which a dead letter carries its size and origin instead of the value."""
LONGEST_MESSAGE = 4096
"""Characters of an error message (a traceback's end) kept in a header."""
VALUE_SIZE = "value-size"
"""Header of a dead letter by reference: bytes of the value that stays at the origin."""


class DeadLetters(NamedTuple):
    """Where dead letters go."""

    topic: str
    partitions: int

    def partition(self, source: int) -> int:
        """Partition of a dead letter from partition `source` of any topic."""
        return source % self.partitions


def origin(record: Record) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}"


def dead_letter(record: Record, code: str, message: str) -> Out:
    """The record as a dead letter: its own headers first, then ours. The end of a long message is kept."""
    headers = [
        *record.headers,
        (topics.ORIGIN, origin(record).encode()),
        (topics.ERROR_CODE, code.encode()),
        (topics.ERROR_MESSAGE, message[-LONGEST_MESSAGE:].encode()),
    ]
    value = record.value or b""
    if len(value) > BY_REFERENCE_ABOVE:
        headers.append((VALUE_SIZE, str(len(value)).encode()))
        value = b""
    return Out(record.key, value, headers)
