"""Encoded rows of one partition as of its last checkpoint, for rows that are not cached decoded.

A store is filled from the changelog when its partition is taken. From then on it changes only after a checkpoint's
transaction has committed, so its content always belongs to one position.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

# Encoded rows by table and key; None is a tombstone.
EncodedRows = Mapping[str, Mapping[bytes, bytes | None]]


class RowStore(Protocol):
    """Encoded rows of the tables of one partition. A store on disk raises StateLost when its files fail."""

    async def load(self, table: str, rows: Mapping[bytes, bytes | None]) -> None:
        """See `RowLoader`."""

    async def loaded(self) -> None:
        """End loading; from here on rows are read."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the row's bytes as of the last checkpoint."""

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all rows in no order. While rows are written, it returns a mixture of old and new."""

    def keys(self, table: str) -> Sequence[bytes]:
        """Return the keys of all rows in no order, without reading rows."""

    def count(self, table: str) -> int:
        """Return the number of rows, without counting them."""

    async def write(self, rows: EncodedRows) -> None:
        """Write the rows of a committed checkpoint, all or nothing."""

    def cool(self, table: str, keys: Iterable[bytes]) -> None:
        """Note rows that were not used for a while."""

    def tidy(self, most: int) -> int:
        """Do postponed work for at most `most` rows; return their number, 0 when nothing is left."""

    def close(self) -> None:
        """Close the store; it is empty afterwards."""


class Stores(Protocol):
    """The stores of a worker's parts."""

    async def start(self) -> None:
        """Called before the first `open`. Raises LogFailed."""

    async def open(self, agent: str, partition: int, tables: Sequence[str]) -> RowStore:
        """Return an empty store. An older one of the same partition may still be closing. Raises StateLost."""

    async def stop(self) -> None:
        """Called after the last store was closed."""


class MemoryStores:
    """Stores in this process's memory."""

    async def start(self) -> None: ...

    async def open(self, agent: str, partition: int, tables: Sequence[str]) -> RowStore:
        return MemoryStore({table: {} for table in tables})

    async def stop(self) -> None: ...


# Smallest row that is compressed; with a smaller one little would be saved.
WORTH_COMPRESSING_BYTES = 400


class MemoryStore:
    """Rows in dicts. An encoded row takes a third of the memory of a decoded one; an unused row is also compressed.

    Most rows are of finished ceremonies, kept for a month; compressed, they take a third of the encoded size.
    """

    def __init__(self, rows: Mapping[str, Mapping[bytes, bytes]]) -> None:
        self._tables = {table: _MemoryTable(dict(encoded)) for table, encoded in rows.items()}

    async def load(self, table: str, rows: Mapping[bytes, bytes | None]) -> None:
        self._tables[table].write(rows)

    async def loaded(self) -> None: ...

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._tables[table].get(key)

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        rows = self._tables[table]
        for key in self.keys(table):
            raw = rows.get(key)
            if raw is not None:
                yield key, raw

    def keys(self, table: str) -> list[bytes]:
        return self._tables[table].keys()

    def count(self, table: str) -> int:
        return len(self._tables[table].warm) + len(self._tables[table].cold)

    async def write(self, rows: EncodedRows) -> None:
        for table, changed in rows.items():
            self._tables[table].write(changed)

    def cool(self, table: str, keys: Iterable[bytes]) -> None:
        self._tables[table].cooling.update(dict.fromkeys(keys))

    def tidy(self, most: int) -> int:
        done = 0
        for table in self._tables.values():
            done += table.compress(most - done)
        return done

    def close(self) -> None:
        for table in self._tables:
            self._tables[table] = _MemoryTable({})


class _MemoryTable:
    """One table; each key is in one of two dicts."""

    def __init__(self, warm: dict[bytes, bytes]) -> None:
        self.warm = warm
        self.cold: dict[bytes, bytes] = {}
        """Compressed."""
        self.cooling: dict[bytes, None] = {}
        """Keys of rows to be compressed when there is time."""

    def keys(self) -> list[bytes]:
        return [*self.warm, *self.cold]

    def get(self, key: bytes) -> bytes | None:
        raw = self.warm.get(key)
        if raw is None and (packed := self.cold.get(key)) is not None:
            return zlib.decompress(packed)
        return raw

    def write(self, changed: Mapping[bytes, bytes | None]) -> None:
        warm, cold = self.warm, self.cold
        for key, raw in changed.items():
            if cold:
                cold.pop(key, None)
            if raw is None:
                warm.pop(key, None)
            else:
                warm[key] = raw

    def compress(self, most: int) -> int:
        """Return the number of rows examined."""
        number = min(most, len(self.cooling))
        for _ in range(number):
            key, _nothing = self.cooling.popitem()
            raw = self.warm.get(key)
            if raw is not None and len(raw) >= WORTH_COMPRESSING_BYTES:
                self.cold[key] = zlib.compress(raw, 1)
                del self.warm[key]
        return number
