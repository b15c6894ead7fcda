"""The backend of one partition of an agent on the embedded log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ports.log import Fenced, Record
from streams.transport.partition.backend import NewRecord, PositionRow, Recovered, RowLoader
from streams.transport.sqlite.log import SqliteLog
from streams.transport.sqlite.shard import ShardReader


class SqliteBackend:
    """Implements `Backend`. A later `take` of the same partition, in this process or another, fences it."""

    def __init__(
        self,
        log: SqliteLog,
        reader: str,
        topic: str,
        partition: int,
        *,
        changelogs: Mapping[str, str],
        committed_only: bool = False,
    ) -> None:
        """`changelogs`: topic of the changelog by table; `reader`: name for which position and offset are kept."""
        self._log = log
        self._name = reader
        self._topic = topic
        self._partition = partition
        self._changelogs = changelogs
        self._committed_only = committed_only
        self._reader: ShardReader | None = None

    async def take(self, rows: RowLoader) -> Recovered:
        self._log.owners[self._name, self._topic, self._partition] = self
        await self._log.flush()  # writes of a former owner in this process are recovered, too
        log, partition = self._log, self._partition
        committed = log.register(self._name, self._topic, partition)
        self._reader = log.reader(self._topic, partition, committed_only=self._committed_only)
        for table, topic in self._changelogs.items():
            for some in log.rows(topic, partition):
                await rows.load(table, some)
        shard = log.shard(self._topic, partition)
        return Recovered(
            position=log.position(self._name, self._topic, partition),
            start=shard.start,
            end=shard.durable,
            committed=None if self._changelogs else committed,
        )

    def _open(self) -> ShardReader:
        if self._reader is None or self._log.owners.get((self._name, self._topic, self._partition)) is not self:
            raise Fenced("log_fenced", f"{self._name}[{self._partition}] has another owner")
        return self._reader

    def seek(self, offset: int) -> None:
        self._open().seek(offset)

    async def fetch(self, limit: int) -> Sequence[Record]:
        return await self._open().fetch(limit)

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> Sequence[asyncio.Future[Any]]:
        self._log.put(topic, partition, records)
        return (self._log.next_commit(),)

    async def checkpoint(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        self._open()
        for table, changed in rows.items():
            if changed:
                self._log.put_rows(self._changelogs[table], self._partition, changed)
        self._log.put_position(self._name, self._topic, self._partition, position)
        await self._log.flush()

    async def durable(self, offset: int) -> None:
        if self._log.shard(self._topic, self._partition).durable < offset:
            await self._log.flush()

    def commit(self, offset: int) -> None:
        self._open()
        if not self._changelogs:  # an agent with tables resumes at its position row
            self._log.put_offset(self._name, self._topic, self._partition, offset)

    async def close(self) -> None:
        if self._reader is None:
            return
        self._reader.close()
        self._reader = None
        key = (self._name, self._topic, self._partition)
        if self._log.owners.get(key) is self:
            del self._log.owners[key]
            if self._log.state == "ok":
                await self._log.flush()
