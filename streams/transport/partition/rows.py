"""The rows of one partition: the newest decoded, the others encoded in a store, and those not yet checkpointed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

from ports.clock import Clock
from ports.log import LARGEST_RECORD_BYTES, LogFailed, RowUnwritable, TableSpec
from streams.topics import changelog
from streams.transport.partition.row_cache import SMALL_ROW_BYTES, RowCache
from streams.transport.partition.row_store import EncodedRows, RowStore
from tables.errors import Undecodable

# Rows to write, by table and key; None is a tombstone.
Dirty = dict[str, dict[bytes, Any]]

# Largest encoded row; a batch that the broker refuses would break its producer.
LARGEST_ROW_BYTES = LARGEST_RECORD_BYTES - 1024
# Characters of a key shown in a message.
LONGEST_KEY = 300
# Rows encoded before other tasks get the event loop.
ROWS_PER_TURN = 200
# Rows that the store tidies for each row written, so that it keeps up with rows leaving the cache.
TIDIED_PER_ROW = 3
# Rows tidied before other tasks get the event loop.
TIDIED_PER_TURN = 50


class Unreadable(NamedTuple):
    """A row that cannot be read, and the record for the agent's own topic that sets it aside."""

    key: bytes
    report: bytes


class Substituted(NamedTuple):
    """A row that could not be written, and the record for the agent's own topic that reports its substitute."""

    key: bytes
    error: RowUnwritable
    report: bytes


class Table(Mapping[bytes, Any]):
    """One table of one partition, read as a mapping from key to decoded row.

    Rows of the last batches stay decoded until the checkpoint that writes them has committed; of the others, as many
    as fit into the worker's cache. Iteration decodes one row at a time; rows may change meanwhile. Raises LogFailed
    for a row that cannot be read.
    """

    def __init__(self, spec: TableSpec, partition: int, store: RowStore, cache: RowCache) -> None:
        self._spec = spec
        self._partition = partition
        self._store = store
        self._cache = cache
        self._held = cache.join(self._cool)
        self._count = store.count(spec.name)
        self.dirty: dict[bytes, Any] = {}
        """Changed since the last checkpoint began."""
        self.saving: dict[bytes, Any] = {}
        """Rows that the running checkpoint writes."""
        self.unreadable: dict[bytes, bytes] = {}
        """Rows that cannot be read, and count as absent: the record that sets each aside, empty once it is taken."""

    # ---- reading

    @overload
    def get(self, key: bytes, /) -> Any | None: ...
    @overload
    def get(self, key: bytes, /, default: Any) -> Any: ...
    def get(self, key: bytes, /, default: Any = None) -> Any:
        row = self._held.young.get(key)
        if row is None:
            row = self._look(key)
        return default if row is None else row

    def __getitem__(self, key: bytes) -> Any:
        row = self.get(key)
        if row is None:
            raise KeyError(key)
        return row

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.get(key) is not None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        changed = {**self.saving, **self.dirty}
        yield from [key for key, row in changed.items() if row is not None]
        yield from [key for key in self._store.keys(self._spec.name) if key not in changed]

    def items(self) -> Iterator[tuple[bytes, Any]]:  # type: ignore[override]  # one row at a time, no view
        """Iterate over all rows; a row that is not cached is decoded for this reader only."""
        return self.scan()

    def values(self) -> Iterator[Any]:  # type: ignore[override]  # as above
        return (row for _, row in self.scan())

    def scan(
        self, decode: Callable[[bytes], Any] | None = None, keys: Iterable[bytes] | None = None
    ) -> Iterator[tuple[bytes, Any]]:
        """See `PartitionView.scan`."""
        decode = decode or self._spec.decode
        return self._scan_all(decode) if keys is None else self._scan_some(decode, keys)

    def _scan_all(self, decode: Callable[[bytes], Any]) -> Iterator[tuple[bytes, Any]]:
        changed = {**self.saving, **self.dirty}
        for key, row in changed.items():
            if row is not None:
                yield key, row
        for key, raw in self._store.items(self._spec.name):
            if key not in changed:
                row = self._decoded_already(key)
                row = self._decoded(key, raw, decode) if row is None else row
                if row is not None:
                    yield key, row

    def _scan_some(self, decode: Callable[[bytes], Any], keys: Iterable[bytes]) -> Iterator[tuple[bytes, Any]]:
        for key in keys:
            changed, row = self._changed(key)
            if not changed:
                row = self._decoded_already(key)
                if row is None and (raw := self._store.get(self._spec.name, key)) is not None:
                    row = self._decoded(key, raw, decode)
            if row is not None:
                yield key, row

    def _changed(self, key: bytes) -> tuple[bool, Any | None]:
        """Return (True, row) for a row that is newer than the store's."""
        for pending in (self.dirty, self.saving):
            if key in pending:
                return True, pending[key]
        return False, None

    def _decoded_already(self, key: bytes) -> Any | None:
        row = self._held.young.get(key)
        return self._held.old.get(key) if row is None else row

    def _look(self, key: bytes) -> Any | None:
        """Look behind the young generation: at rows not yet in the store, the old generation, then the store."""
        changed, row = self._changed(key)
        if not changed:
            row = self._held.old.get(key)
            if row is None:
                row = self._from_store(key)
        if row is not None:
            self._keep(key, row)
        return row

    def _keep(self, key: bytes, row: Any) -> None:
        """Add a row to the young generation."""
        held, size = self._held, self._held.size(key)
        held.young[key] = row
        if size > SMALL_ROW_BYTES:
            held.sizes[key] = size
        self._cache.add(size)

    def _from_store(self, key: bytes) -> Any | None:
        raw = self._store.get(self._spec.name, key)
        if raw is None:
            return None
        self.encoded(key, len(raw))
        return self._decoded(key, raw, self._spec.decode)

    def _decoded(self, key: bytes, raw: bytes, decode: Callable[[bytes], Any]) -> Any:
        try:
            return decode(raw)
        except Exception as error:
            if isinstance(error, Undecodable) and self._spec.unreadable is not None:
                self._set_aside(key, self._spec.unreadable(key, raw, error))
                return None
            raise LogFailed(
                "row_unreadable",
                f"{self._name(key)} ({type(error).__name__}); its newest record in the topic"
                f" …{changelog(self._spec.name)}[{self._partition}] is no row of this release, and no row is skipped",
            ) from error

    def _set_aside(self, key: bytes, report: bytes) -> None:
        """Let a row count as absent; it stays in the changelog until its key is written again."""
        if key not in self.unreadable:
            self.unreadable[key] = report
            self._count -= 1

    def take_unreadable(self) -> list[Unreadable]:
        """Return the rows that were found to be unreadable since the last call."""
        found = [Unreadable(key, report) for key, report in self.unreadable.items() if report]
        self.unreadable.update(dict.fromkeys((one.key for one in found), b""))
        return found

    # ---- changing

    def apply(self, changed: Mapping[bytes, Any]) -> int:
        """Make changes visible; return about how many more bytes the next checkpoint writes."""
        held, dirty = self._held, self.dirty
        size = 0
        for key, row in changed.items():
            known = key in held.young
            self.unreadable.pop(key, None)
            self._count += (row is not None) - (known or key in self)
            if key not in dirty:
                size += held.size(key)
            dirty[key] = row
            if row is None:
                held.young.pop(key, None)
                held.old.pop(key, None)
            elif known:
                held.young[key] = row
            else:
                self._keep(key, row)
        return size

    def take_dirty(self) -> dict[bytes, Any]:
        """Return the rows that the checkpoint beginning now writes, each in its present version."""
        self.saving, self.dirty = self.dirty, {}
        return self.saving

    def saved(self) -> None:
        """Note that the rows taken are in the store."""
        self.saving = {}

    def encoded(self, key: bytes, size: int) -> None:
        """Note the size of a row; a new row counted as a small one until now."""
        held = self._held
        if size > SMALL_ROW_BYTES:
            more = size - held.size(key)
            held.sizes[key] = size
            if more > 0 and key in held.young:
                self._cache.add(more)
        else:
            held.sizes.pop(key, None)

    def _cool(self, keys: Iterable[bytes]) -> None:
        """Note keys dropped from the cache's old generation; some are young again."""
        young = self._held.young
        self._store.cool(self._spec.name, [key for key in keys if key not in young])

    def close(self) -> None:
        self._cache.leave(self._held)

    def _name(self, key: bytes) -> str:
        return f"{key.decode(errors='replace')[:LONGEST_KEY]!r} of table {self._spec.name}[{self._partition}]"

    def encode(self, key: bytes, row: Any) -> bytes | None:
        """Encode a row. Raises RowUnwritable if it cannot be encoded or is larger than LARGEST_ROW_BYTES."""
        if row is None:
            return None
        try:
            raw = self._spec.encode(row)
        except MemoryError as error:
            raise LogFailed("out_of_memory", f"{self._name(key)} cannot be encoded; the worker ends") from error
        except Exception as error:
            raise RowUnwritable("row_unwritable", f"{self._name(key)} ({type(error).__name__})") from error
        if len(raw) > LARGEST_ROW_BYTES:
            raise RowUnwritable("row_too_large", f"{self._name(key)} has {len(raw)} bytes, at most {LARGEST_ROW_BYTES}")
        self.encoded(key, len(raw))
        return raw

    def substituted(self, key: bytes, row: Any, error: RowUnwritable) -> tuple[bytes | None, bytes]:
        """Put a row that can be written in the place of one that cannot, and encode it. Raises RowUnwritable.

        Return it with the record that reports it.

        It takes the place of rows that were folded from it meanwhile, too: they can be no better.
        """
        if self._spec.substitute is None:
            raise error
        raw = self._store.get(self._spec.name, key)
        written = None if raw is None else self._decoded(key, raw, self._spec.decode)
        newest = self.dirty.get(key)
        substitute, report = self._spec.substitute(written, row if newest is None else newest, error)
        encoded = self.encode(key, substitute)
        self.saving[key] = substitute
        if key in self.dirty:
            self.dirty[key] = substitute
        self._held.old.pop(key, None)
        self._keep(key, substitute)
        return encoded, report


class Rows:
    """Tables of one partition of one agent. Rows are values, so they may be encoded some time after a snapshot."""

    def __init__(
        self, tables: Sequence[TableSpec], partition: int, clock: Clock, cache: RowCache, store: RowStore
    ) -> None:
        self.tables = {table.name: Table(table, partition, store, cache) for table in tables}
        self.substituted: list[Substituted] = []
        """Rows that could not be written, since the last call of `take_substituted`."""
        self._store = store
        self._clock = clock
        self._untidied = 0
        """Rows written since the store was last tidied."""

    def apply(self, name: str, changed: Mapping[bytes, Any]) -> int:
        """Make changes of a table visible; return about how many more bytes the next checkpoint writes."""
        return self.tables[name].apply(changed)

    def take_dirty(self) -> Dirty:
        """Return the rows changed since the last call; they stay readable until `saved`."""
        return {name: table.take_dirty() for name, table in self.tables.items()}

    async def encode(self, dirty: Dirty) -> dict[str, dict[bytes, bytes | None]]:
        """Encode rows. Raises RowUnwritable for a row that cannot be encoded or is too large, and has no substitute."""
        return {name: await self._encode(self.tables[name], rows) for name, rows in dirty.items()}

    async def _encode(self, table: Table, rows: Mapping[bytes, Any]) -> dict[bytes, bytes | None]:
        encoded = dict[bytes, bytes | None]()
        for count, (key, row) in enumerate(list(rows.items()), 1):
            try:
                encoded[key] = table.encode(key, row)
            except RowUnwritable as error:
                encoded[key], report = table.substituted(key, row, error)
                self.substituted.append(Substituted(key, error, report))
            if count % ROWS_PER_TURN == 0:
                await self._clock.sleep(0)
        return encoded

    def take_unreadable(self) -> list[Unreadable]:
        return [one for table in self.tables.values() for one in table.take_unreadable()]

    def take_substituted(self) -> list[Substituted]:
        found, self.substituted = self.substituted, []
        return found

    async def saved(self, encoded: EncodedRows) -> None:
        """Write the rows of a committed checkpoint to the store. Raises StateLost."""
        await self._store.write(encoded)
        for table in self.tables.values():
            table.saved()
        self._untidied += sum(map(len, encoded.values()))

    async def tidy(self) -> None:
        """Let the store do postponed work between checkpoints, in small pieces."""
        left, self._untidied = TIDIED_PER_ROW * self._untidied, 0
        while left > 0 and (done := self._store.tidy(min(left, TIDIED_PER_TURN))):
            left -= done
            await self._clock.sleep(0)

    def close(self) -> None:
        for table in self.tables.values():
            table.close()
        self._store.close()
