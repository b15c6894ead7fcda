"""A commit window of the embedded log: collects writes and turns them into one transaction."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator

from ports.log import LARGEST_BATCH_BYTES, Record
from streams.transport.partition.backend import PositionRow
from streams.transport.partition.batch import record_size
from streams.transport.sqlite.file import Transaction, encode_batch
from streams.transport.sqlite.shard import Shard


class ReaderPositions:
    """The durable position of each reader of each partition; queue records are kept for the slowest."""

    def __init__(self) -> None:
        self._readers: defaultdict[tuple[int, int], dict[str, int]] = defaultdict(dict)

    def set(self, reader: str, topic: int, partition: int, offset: int) -> None:
        self._readers[topic, partition][reader] = offset

    def get(self, reader: str, shard: Shard) -> int | None:
        return self._readers[shard.topic.id, shard.number].get(reader)

    def consumed(self, shard: Shard) -> int | None:
        """Return the position of the slowest reader of a partition; None without readers."""
        return min(self._readers[shard.topic.id, shard.number].values(), default=None)


class CommitWindow:
    """Writes since the last window that are not in a transaction yet."""

    def __init__(self) -> None:
        self.shards: dict[Shard, None] = {}
        """Partitions with new records or rows (a dict: in order, each once)."""
        self.rows: dict[tuple[int, int, bytes], tuple[int, int, bytes | None]] = {}
        self.positions: dict[tuple[str, int, int], PositionRow] = {}
        self.offsets: dict[tuple[str, int, int], int] = {}
        self.notes: dict[tuple[str, int, int], str] = {}
        self.trims: dict[Shard, int] = {}
        self.tombstones: list[tuple[int]] = []
        self.waiting: list[asyncio.Future[None]] = []

    def cut(self, progress: ReaderPositions, timestamp: int) -> tuple[Transaction, list[tuple[Shard, int]]]:
        """Return the transaction, and the log ends that are durable once it is committed."""
        for reader, row in self.positions.items():
            progress.set(*reader, row.next)
        for reader, offset in self.offsets.items():
            progress.set(*reader, offset)
        transaction = Transaction(timestamp, tombstones=self.tombstones)
        for shard in self.shards:
            transaction.batches += _batches(shard, progress)
        for shard, low in self.trims.items():
            shard.start, shard.trimmed = max(shard.start, low), low
            transaction.trims.append((shard.topic.id, shard.number, low))
        transaction.ends = [(s.topic.id, s.number, s.start, s.end) for s in {**self.shards, **self.trims}]
        transaction.rows = [(*key, *row) for key, row in self.rows.items()]
        transaction.positions = [(*key, *row) for key, row in self.positions.items()]
        transaction.offsets = [(*key, offset) for key, offset in self.offsets.items()]
        transaction.notes = [(*key, note) for key, note in self.notes.items()]
        return transaction, [(shard, shard.end) for shard in self.shards]


def _batches(shard: Shard, progress: ReaderPositions) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Iterate over batches of the window's records; consumed queue records need no writing."""
    fresh, shard.fresh = shard.fresh, []
    if shard.topic.spec.queue and fresh and (low := progress.consumed(shard)) is not None:
        shard.start = max(shard.start, low)  # in the same transaction, so that there is no gap above the log start
        fresh = fresh[max(0, low - fresh[0].offset) :]
    for records in _split(fresh):
        last = records[-1]
        body = encode_batch(records)
        yield shard.topic.id, shard.number, records[0].offset, last.offset + 1, last.timestamp, body


def _split(records: list[Record]) -> list[list[Record]]:
    """Split records into batches of at most LARGEST_BATCH_BYTES, or of a single record."""
    batches: list[list[Record]] = []
    room = 0
    for record in records:
        size = record_size(record.topic, record.key, record.value or b"", record.headers)
        if size > room:
            batches.append([])
            room = LARGEST_BATCH_BYTES
        batches[-1].append(record)
        room -= size
    return batches
