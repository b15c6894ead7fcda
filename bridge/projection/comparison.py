"""Compares the tables with the stores: id, version and digest of each row, in pages, while everything runs.

The newest row of each instance comes from the changelog. A store may be behind for a moment, so a difference counts
only when it is found again a little later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from bridge.projection.documents import Documents, portions
from bridge.projection.store import Store, StoredRow
from ports.clock import Clock
from ports.log import Log
from streams import topics
from tables.read_model import Document, neo4j_properties, valkey_json

MISSING, STALE, DIFFERENT, SURPLUS = "missing", "stale", "different", "surplus"
PAGE = 500
# A projector that answers is not further behind than this.
AGAIN_SECONDS = 5.0

_encode = msgspec.json.Encoder(order="sorted").encode


class TableRow(NamedTuple):
    """The newest row of an instance, as the tables have it."""

    partition: int
    version: int
    digests: Mapping[str, bytes]
    """Of its document, by store."""


class Difference(NamedTuple):
    """One row of a store that is not that of the tables."""

    store: str
    instance_id: str
    problem: str
    """`missing`, `stale` (an older version), `different` (another text of the same version), `surplus`."""
    table_version: int
    """0 where the tables have no such row."""
    store_version: int
    """0 where the store has no such row, or none that can be read."""
    partition: int


class Comparison:
    """Reads the tables once, then compares each store with them."""

    def __init__(self, log: Log, documents: Documents, clock: Clock, *, prefix: str, partitions: int) -> None:
        self._log = log
        self._documents = documents
        self._clock = clock
        self._topic = topics.prefixed(prefix, topics.changelog(topics.CEREMONIES))
        self._partitions = partitions
        self._rows: dict[str, TableRow] = {}
        self._read_up_to = [0] * partitions

    async def read_tables(self, progress: Callable[[int, int], None]) -> int:
        """Read what the changelog has more; return the number of rows. `progress` gets records read, and all."""
        ends = await self._log.ends(self._topic)
        total = sum(end - max(start, self._read_up_to[p]) for p, (start, end) in enumerate(ends))
        done = 0
        for partition, (start, end) in enumerate(ends):
            async for records in self._log.read(self._topic, partition, max(start, self._read_up_to[partition]), end):
                for portion in portions(records):
                    changes = await self._documents.of(portion)
                    for gone in changes.gone:
                        self._rows.pop(gone.instance_id, None)
                    for document in changes.documents:
                        self._rows[document.instance_id] = _table_row(document, partition)
                    done += len(portion)
                    progress(done, total)
            self._read_up_to[partition] = end
        return len(self._rows)

    async def differences(self, store: Store, progress: Callable[[int, int], None]) -> Sequence[Difference]:
        """Return the differences of a store that are still there some seconds later. Raises StoreError."""
        found = await self._once(store, progress)
        if not found:
            return ()
        await self._clock.sleep(AGAIN_SECONDS)
        await self.read_tables(lambda _, __: None)
        candidates = [difference.instance_id for difference in found]
        return await self._compared(store, candidates)

    async def _once(self, store: Store, progress: Callable[[int, int], None]) -> Sequence[Difference]:
        ids = list(self._rows)
        found: list[Difference] = []
        for begin in range(0, len(ids), PAGE):
            found += await self._compared(store, ids[begin : begin + PAGE])
            progress(min(begin + PAGE, len(ids)), len(ids))
        async for page in store.instance_ids():
            found += await self._compared(store, [i for i in page if i not in self._rows])
        return found

    async def _compared(self, store: Store, instance_ids: Collection[str]) -> Sequence[Difference]:
        stored: dict[str, StoredRow] = {}
        ids = list(instance_ids)
        for begin in range(0, len(ids), PAGE):
            stored |= {row.instance_id: row for row in await store.rows(ids[begin : begin + PAGE])}
        return list(self._judged(store.name, ids, stored))

    def _judged(self, store: str, ids: Iterable[str], stored: Mapping[str, StoredRow]) -> Iterable[Difference]:
        for instance_id in ids:
            table, row = self._rows.get(instance_id), stored.get(instance_id)
            problem = _problem(store, table, row)
            if problem:
                partition = self._log.partition_of(instance_id.encode(), self._partitions)
                version = 0 if table is None else table.version
                yield Difference(store, instance_id, problem, version, 0 if row is None else row.version, partition)


def _problem(store: str, table: TableRow | None, row: StoredRow | None) -> str:
    if table is None:
        return "" if row is None else SURPLUS
    if row is None:
        return MISSING
    if row.document is None or row.version < table.version:
        return STALE
    if row.version > table.version:
        return ""  # the tables have moved on meanwhile
    return "" if _digest(row.document) == table.digests[store] else DIFFERENT


def _table_row(document: Document, partition: int) -> TableRow:
    digests = {"valkey": _digest(valkey_json(document)), "neo4j": _digest(neo4j_properties(document))}
    return TableRow(partition, document.version, digests)


def _digest(document: bytes | Mapping[str, str | int]) -> bytes:
    text = document if isinstance(document, bytes) else _encode(document)
    return hashlib.blake2b(text, digest_size=8).digest()
