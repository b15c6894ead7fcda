"""Encoded rows of one partition as of its last checkpoint: where a table looks for what it does not hold decoded.

A store is filled from the changelog when its partition is taken. From then on it changes after a checkpoint's
transaction has committed, never before: what it holds stands for one position.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

# Encoded rows by table and key; None is a tombstone.
EncodedRows = Mapping[str, Mapping[bytes, bytes | None]]


class RowStore(Protocol):
    """What a partition's tables stand on. One on disk raises StateLost where its files fail it."""

    async def load(self, table: str, rows: Mapping[bytes, bytes | None]) -> None:
        """See `contract.Loading`."""

    async def loaded(self) -> None:
        """All rows have been loaded; from here on they are read."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The row's bytes as of the last checkpoint."""

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All rows, in no order; goes on, in some mixture of old and new, while rows are written."""

    def keys(self, table: str) -> Sequence[bytes]:
        """The keys of all rows, in no order; no row is read for them."""

    def count(self, table: str) -> int:
        """How many rows there are; known, not counted."""

    async def write(self, rows: EncodedRows) -> None:
        """Rows of a checkpoint whose transaction has committed, all or nothing."""

    def cool(self, table: str, keys: Iterable[bytes]) -> None:
        """Nobody has asked for these rows for a while."""

    def tidy(self, most: int) -> int:
        """Do for at most so many rows what can wait; returns for how many, 0 when nothing is left."""

    def close(self) -> None:
        """Give it up; what is asked of it afterwards finds nothing."""


class Stores(Protocol):
    """Where the parts of a worker get their stores."""

    async def start(self) -> None:
        """Before the first `open`. Raises LogFailed."""

    async def open(self, agent: str, partition: int, tables: Sequence[str]) -> RowStore:
        """An empty store. Of the same partition none is open, though one may still be closing. Raises StateLost."""

    async def stop(self) -> None:
        """After the last store was closed."""


class MemoryStores:
    """Stores in this process's memory."""

    async def start(self) -> None: ...

    async def open(self, agent: str, partition: int, tables: Sequence[str]) -> RowStore:
        return MemoryStore({table: {} for table in tables})

    async def stop(self) -> None: ...


# Bytes; of a smaller row little would be saved.
WORTH_COMPRESSING_BYTES = 400


class MemoryStore:
    """Rows in dicts: encoded, a row takes a third of what it takes decoded; one not asked for is compressed, too.

    A finished ceremony's row stays for a month, and most rows are those: compressed, they take a third again.
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
    """One table: a key is in one of the two dicts."""

    def __init__(self, warm: dict[bytes, bytes]) -> None:
        self.warm = warm
        self.cold: dict[bytes, bytes] = {}
        """Compressed."""
        self.cooling: dict[bytes, None] = {}
        """To be compressed as time permits."""

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
        """Returns how many of those that cool were looked at."""
        number = min(most, len(self.cooling))
        for _ in range(number):
            key, _nothing = self.cooling.popitem()
            raw = self.warm.get(key)
            if raw is not None and len(raw) >= WORTH_COMPRESSING_BYTES:
                self.cold[key] = zlib.compress(raw, 1)
                del self.warm[key]
        return number
