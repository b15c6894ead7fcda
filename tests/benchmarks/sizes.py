"""The records and bytes of a ceremony in the log, so that the bare loop reads and writes the same."""

from __future__ import annotations

import msgspec

from ports.log import Record


class RecordSize(msgspec.Struct, frozen=True):
    """Sizes of one record in bytes."""

    key: int
    value: int
    headers: tuple[tuple[str, int], ...]
    """Names of headers, and the sizes of their contents."""


class Records(msgspec.Struct, frozen=True):
    """The records of one sort."""

    each: int
    """Number in one ceremony."""
    size: RecordSize
    """Average size."""


NONE = Records(0, RecordSize(0, 0, ()))


class CeremonyRecords(msgspec.Struct, frozen=True):
    """The records of one ceremony, by their use."""

    starts: Records
    """Written by a front; the engine reads them."""
    outcomes: Records
    """Written by step agents; the engine reads them."""
    requests: Records
    """Written by the engine; step agents read them."""
    events: Records
    """Written by the engine. The NATS bridge's reading is no part of the comparison."""

    @property
    def commands(self) -> int:
        """Number of commands, each of which replaces a row."""
        return self.starts.each + self.outcomes.each

    @property
    def read(self) -> int:
        return self.commands + self.requests.each

    @property
    def written(self) -> int:
        return self.outcomes.each + self.requests.each + self.events.each

    def __str__(self) -> str:
        rows = "a row replaced" if self.commands == 1 else f"a row replaced {self.commands} times"
        records = "record" if self.read == 1 else "records"
        return f"per ceremony {self.read} {records} read, {rows}, {self.written} written"


class Weighed:
    """Adds up the records of one sort."""

    def __init__(self) -> None:
        self._count = self._key = self._value = 0
        self._headers: dict[str, int] = {}

    def add(self, record: Record) -> None:
        self._count += 1
        self._key += len(record.key or b"")
        self._value += len(record.value or b"")
        for name, content in record.headers:
            self._headers[name] = self._headers.get(name, 0) + len(content)

    def of(self, ceremonies: int) -> Records:
        """Return the records of one ceremony, out of `ceremonies`."""
        if not self._count:
            return NONE
        headers = tuple((name, round(total / self._count)) for name, total in self._headers.items())
        size = RecordSize(round(self._key / self._count), round(self._value / self._count), headers)
        return Records(round(self._count / ceremonies), size)
