"""What the records of one step weigh, so that the bare loop reads and writes the same."""

from __future__ import annotations

from typing import NamedTuple

from streams.transport.contract import Record


class RecordSize(NamedTuple):
    """Bytes of one record."""

    key: int
    value: int
    headers: tuple[tuple[str, int], ...]
    """Name, and bytes of the content."""


class StepRecords(NamedTuple):
    """The records of one step: outcome and request are written and read, the event is written."""

    outcome: RecordSize
    request: RecordSize
    event: RecordSize


def size_of(record: Record) -> RecordSize:
    headers = tuple((name, len(content)) for name, content in record.headers)
    return RecordSize(len(record.key or b""), len(record.value or b""), headers)
