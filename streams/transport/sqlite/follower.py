"""Follows a topic of the embedded log in a group of its own, for the bridges."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from ports.clock import Clock
from ports.log import Committed, Handle, Taken
from streams.transport.sqlite.shard import Shard, ShardReader


class FollowedLog(Protocol):
    """The part of `SqliteLog` that a follower uses."""

    @property
    def state(self) -> str: ...

    def shards(self, topic: str) -> Sequence[Shard]: ...

    def reader(self, topic: str, partition: int, *, committed_only: bool) -> ShardReader: ...

    def register(self, reader: str, topic: str, partition: int) -> int | None: ...

    def note(self, reader: str, topic: str, partition: int) -> str: ...

    def put_offset(self, reader: str, topic: str, partition: int, offset: int, note: str | None = None) -> None: ...

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]: ...

    async def flush(self) -> None: ...

    def crash(self, error: Exception) -> None: ...


class SqliteFollower:
    """Implements `Follower`: reads all partitions of a topic for one group, with a task each."""

    def __init__(
        self,
        log: FollowedLog,
        clock: Clock,
        group: str,
        topic: str,
        handle: Handle,
        batch: int,
        taken: Taken | None = None,
    ) -> None:
        self._log = log
        self._clock = clock
        self._group = group
        self._topic = topic
        self._handle = handle
        self._batch = batch
        self._taken = taken
        self._stopping = False
        self._busy: dict[int, int] = {}
        """Offset of the first record of each batch in hand, by partition."""
        self._readers: dict[int, ShardReader] = {}
        self._tasks = [
            clock.spawn(self._run(shard.number), name=f"follow-{group}-{topic}-{shard.number}")
            for shard in log.shards(topic)
        ]

    async def _run(self, partition: int) -> None:
        reader = self._readers[partition] = self._log.reader(self._topic, partition, committed_only=True)
        try:
            committed = self._log.register(self._group, self._topic, partition)
            reader.seek(committed or 0)
            if self._taken is not None:
                await self._taken(await self._committed(partition, committed))
            while not self._stopping:
                records = await reader.fetch(self._batch)
                self._busy[partition] = records[0].offset
                note = await self._handle(records)
                self._log.put_offset(self._group, self._topic, partition, records[-1].offset + 1, note)
                del self._busy[partition]
        except Exception as error:  # noqa: BLE001 - an exception of a handler ends the worker, unless the log has failed already
            if self._log.state == "ok":
                self._log.crash(error)
        finally:
            self._busy.pop(partition, None)
            reader.close()

    async def _committed(self, partition: int, offset: int | None) -> Committed:
        _, end = (await self._log.ends(self._topic))[partition]
        return Committed(partition, offset, self._log.note(self._group, self._topic, partition), end)

    @property
    def fresh(self) -> bool:
        """Always true, as only one process has the file."""
        return True

    @property
    def places(self) -> Mapping[int, int]:
        return {partition: self._busy.get(partition, reader.position) for partition, reader in self._readers.items()}

    def seek(self, partition: int, offset: int) -> None:
        self._readers[partition].move(offset)

    async def stop(self) -> None:
        """Finish the batch in hand, commit, and end."""
        self._stopping = True
        for number, task in enumerate(self._tasks):
            if number not in self._busy:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._log.state == "ok":
            await self._log.flush()
