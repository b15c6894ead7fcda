"""The rows of one partition: decoded, in memory, and which of them the next checkpoint has to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steps.ports import Clock
from streams.topics import changelog
from streams.transport.contract import LARGEST_RECORD, LogFailed, TableSpec

Dirty = dict[str, dict[bytes, Any]]
"""Rows to be written, by table and key; None is a tombstone."""

SMALL_ROW = 1024
"""Bytes counted for a dirty row whose last encoding was no larger; the sizes of larger ones are remembered."""
LARGEST_ROW = LARGEST_RECORD - 1024
"""Bytes of an encoded row; a batch that the broker refuses would break its producer."""
LONGEST_KEY = 300
"""Characters of a key that a message shows."""
CHUNK = 200
"""Rows encoded before others get a turn; ten times as many are decoded."""


class Rows:
    """Tables of one partition of one agent. Rows are values: they may be encoded some time after a snapshot."""

    def __init__(self, tables: Sequence[TableSpec], partition: int, clock: Clock) -> None:
        self.tables: dict[str, dict[bytes, Any]] = {table.name: {} for table in tables}
        self._codecs = {table.name: table for table in tables}
        self._partition = partition
        self._clock = clock
        self._large: dict[tuple[str, bytes], int] = {}
        self._dirty: Dirty = {name: {} for name in self.tables}

    async def decode(self, recovered: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """Fill the tables with what was read back. Raises LogFailed for a row that cannot be read."""
        for name, encoded in recovered.items():
            rows, decode = self.tables[name], self._codecs[name].decode
            for count, (key, raw) in enumerate(encoded.items(), 1):
                try:
                    rows[key] = decode(raw)
                except Exception as error:
                    raise LogFailed(
                        f"row_unreadable: {self._row(name, key)} ({type(error).__name__}); its newest record in the"
                        f" topic …{changelog(name)}[{self._partition}] is no row of this release, and no row is skipped"
                    ) from error
                if len(raw) > SMALL_ROW:
                    self._large[name, key] = len(raw)
                if count % (10 * CHUNK) == 0:
                    await self._clock.sleep(0)

    def apply(self, name: str, changed: Mapping[bytes, Any]) -> int:
        """Make changes of a table visible; returns about how many bytes more the next checkpoint has to write."""
        rows, dirty, large = self.tables[name], self._dirty[name], self._large
        size = 0
        for key, row in changed.items():
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row
            if key not in dirty:
                size += large.get((name, key), SMALL_ROW) if large else SMALL_ROW
        dirty.update(changed)
        return size

    def take_dirty(self) -> Dirty:
        """What changed since the last call, each row in its present version."""
        dirty, self._dirty = self._dirty, {name: {} for name in self.tables}
        return dirty

    async def encode(self, dirty: Dirty) -> dict[str, dict[bytes, bytes | None]]:
        """Raises LogFailed for a row that cannot be encoded or is larger than LARGEST_ROW."""
        return {name: await self._encode(name, rows) for name, rows in dirty.items()}

    async def _encode(self, name: str, rows: Mapping[bytes, Any]) -> dict[bytes, bytes | None]:
        encode, encoded = self._codecs[name].encode, dict[bytes, bytes | None]()
        for count, (key, row) in enumerate(rows.items(), 1):
            try:
                raw = encoded[key] = None if row is None else encode(row)
            except Exception as error:
                raise LogFailed(f"row_unwritable: {self._row(name, key)} ({type(error).__name__})") from error
            self._remember(name, key, 0 if raw is None else len(raw))
            if count % CHUNK == 0:
                await self._clock.sleep(0)
        return encoded

    def _remember(self, name: str, key: bytes, size: int) -> None:
        if size > LARGEST_ROW:
            raise LogFailed(f"row_too_large: {self._row(name, key)} has {size} bytes, at most {LARGEST_ROW}")
        if size > SMALL_ROW:
            self._large[name, key] = size
        elif self._large:
            self._large.pop((name, key), None)

    def _row(self, name: str, key: bytes) -> str:
        return f"{key.decode(errors='replace')[:LONGEST_KEY]!r} of table {name}[{self._partition}]"
