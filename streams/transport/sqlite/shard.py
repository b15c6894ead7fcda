"""Partitions of the embedded log in memory: ends, newest records, and readers that also read the file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ports.log import Record
from streams.transport.sqlite.file import LogFile, StoredTopic

# Committed records that a partition keeps in memory for slow readers; older ones are read from the file.
TAIL_BYTES = 2 * 1024 * 1024
# Memory of a record beside its value, roughly.
_FRAMING_BYTES = 70


class Shard:
    """One partition of one topic in memory: its ends, and the newest records."""

    __slots__ = (
        "ahead",
        "base",
        "behind",
        "durable",
        "end",
        "fresh",
        "newest",
        "number",
        "readers",
        "start",
        "tail",
        "tail_bytes",
        "topic",
        "trimmed",
    )

    def __init__(self, topic: StoredTopic, number: int, start: int, end: int) -> None:
        self.topic = topic
        self.number = number
        self.start = start
        self.trimmed = start
        """Batches below it are deleted; the log start may be higher, inside a batch with later records."""
        self.end = end
        self.durable = end
        """Everything below it is committed."""
        self.base = end
        """Offset of the first record of `tail`; older records are only in the file."""
        self.newest = 0
        """Timestamp of the last record appended in this run."""
        self.tail: list[Record] = []
        self.tail_bytes = 0
        self.fresh: list[Record] = []
        """Records appended in this window."""
        self.readers: set[ShardReader] = set()
        self.ahead: list[asyncio.Future[None]] = []
        """Futures of readers that wait for an append."""
        self.behind: list[asyncio.Future[None]] = []
        """Futures of readers that wait for a commit."""

    def append(self, record: Record) -> None:
        self.end = record.offset + 1
        self.tail.append(record)
        self.tail_bytes += len(record.value or b"") + _FRAMING_BYTES
        self.fresh.append(record)
        if self.ahead:
            wake(self.ahead)

    def mark_durable(self, durable: int) -> None:
        """Note that everything below `durable` is committed: wake readers, and drop records that none needs."""
        self.durable = durable
        if self.behind:
            wake(self.behind)
        if self.topic.spec.compacted:
            self.base = durable  # rows are only read from the file
            return
        needed = min((reader.position for reader in self.readers), default=durable)
        count = 0
        for record in self.tail:
            if record.offset >= durable or (record.offset >= needed and self.tail_bytes <= TAIL_BYTES):
                break
            self.tail_bytes -= len(record.value or b"") + _FRAMING_BYTES
            count += 1
        del self.tail[:count]
        self.base += count


def wake(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
    waiting.clear()


def fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # mark as retrieved: no caller may wait any more


class ShardReader:
    """A position in one partition. With `committed_only` it never returns a record that a crash could lose."""

    def __init__(self, shard: Shard, check: Callable[[], LogFile], *, committed_only: bool) -> None:
        self._shard = shard
        self._check = check
        self._committed_only = committed_only or shard.topic.spec.compacted
        self._buffer: list[Record] = []
        self.position = shard.start
        shard.readers.add(self)

    def seek(self, offset: int) -> None:
        self.position = offset
        self._buffer = []

    def move(self, offset: int) -> None:
        """Seek, also while a fetch waits: it then returns records from there."""
        self.seek(offset)
        wake(self._shard.behind if self._committed_only else self._shard.ahead)

    async def fetch(self, limit: int) -> list[Record]:
        """Return the next records, at least one and at most `limit`. Cancelling it loses nothing. Raises LogFailed."""
        while True:
            self._check()
            if records := self.read_now(limit):
                return records
            future = asyncio.get_running_loop().create_future()
            (self._shard.behind if self._committed_only else self._shard.ahead).append(future)
            await future

    def read_now(self, limit: int) -> list[Record]:
        """Return the records available now, at most `limit`."""
        shard = self._shard
        if self.position < shard.start:
            self.seek(shard.start)
        end = shard.durable if self._committed_only else shard.end
        while self.position < end:
            records = self._buffered(limit) or self._from_tail(limit, end)
            if records:
                self.position = records[-1].offset + 1
                return records
            self._load(min(end, shard.base))
        return []

    def _buffered(self, limit: int) -> list[Record]:
        records = self._buffer[:limit]
        del self._buffer[:limit]
        return records

    def _from_tail(self, limit: int, end: int) -> list[Record]:
        first = self.position - self._shard.base
        return self._shard.tail[first : min(first + limit, end - self._shard.base)] if first >= 0 else []

    def _load(self, end: int) -> None:
        """Read the next records from the file; skips gaps left by consumed and compacted records."""
        self._buffer = self._check().read(self._shard.topic, self._shard.number, self.position, end)
        if not self._buffer:
            self.position = end

    def close(self) -> None:
        self._shard.readers.discard(self)
