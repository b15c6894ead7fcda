"""What a ceremony leaves in the log, in records and bytes, so that the bare loop reads and writes the same."""

from __future__ import annotations

import msgspec

from ports.log import Record


class RecordSize(msgspec.Struct, frozen=True):
    """Bytes of one record."""

    key: int
    value: int
    headers: tuple[tuple[str, int], ...]
    """Name, and bytes of the content."""


class Records(msgspec.Struct, frozen=True):
    """The records of one sort."""

    each: int
    """Of one ceremony."""
    size: RecordSize
    """On the average."""


NONE = Records(0, RecordSize(0, 0, ()))


class CeremonyRecords(msgspec.Struct, frozen=True):
    """The records of one ceremony, by what is done with them."""

    starts: Records
    """Read by the engine; a front wrote them."""
    outcomes: Records
    """Of step agents: written, and read."""
    requests: Records
    """To step agents: written, and read."""
    events: Records
    """Written. The NATS bridge's reading is no part of the comparison."""

    @property
    def commands(self) -> int:
        """Each replaces a row."""
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
        """What there is of each, where there are so many."""
        if not self._count:
            return NONE
        headers = tuple((name, round(total / self._count)) for name, total in self._headers.items())
        size = RecordSize(round(self._key / self._count), round(self._value / self._count), headers)
        return Records(round(self._count / ceremonies), size)
