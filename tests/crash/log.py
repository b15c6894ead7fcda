"""The log in memory: a broker that outlives the processes, and their clients of it. It has transactions and fencing.

A record lies in its process's buffer for a while; a kill loses it. Its acknowledgement comes later than the append;
after a kill in between, the record exists and no process knows it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiokafka.partitioner import murmur2

from ports.clock import Clock
from ports.log import AgentSpec, Committed, Fenced, Follower, Handle, Header, Position, Record, Taken, TopicSpec
from streams.transport.partition.backend import NewRecord, PositionRow, Recovered, RowLoader
from streams.transport.partition.batch import record_size
from streams.transport.partition.ownership import IsCurrent
from tests.crash.world import Host, World

# Longest time of an effect in its producer's buffer: the time between checkpoints.
SEND_SECONDS = 0.5
APPEND_SECONDS = 0.2
TRANSACTION_SECONDS = 0.1
COMMIT_SECONDS = 0.3
FETCH_SECONDS = 0.004

Key = tuple[str, int]


class Broker:
    """The durable state: records, changelogs, positions and offsets of groups."""

    def __init__(self, world: World, partitions: int) -> None:
        self.world = world
        self.partitions = partitions
        self.records: dict[Key, list[Record]] = defaultdict(list)
        self.rows: dict[Key, dict[bytes, bytes]] = defaultdict(dict)
        self.positions: dict[Key, PositionRow] = {}
        self.committed: dict[tuple[str, str, int], int] = {}
        """By group, topic and partition."""
        self.notes: dict[tuple[str, str, int], str] = {}
        """Committed with the offsets."""
        self.epochs: dict[Key, int] = defaultdict(int)
        self.members: dict[str, Host] = {}
        """The process that joined each group last. It owns every partition."""
        self._waiting: dict[Key, list[tuple[Host, asyncio.Future[None]]]] = defaultdict(list)

    def append(self, topic: str, partition: int, out: NewRecord) -> Position:
        log = self.records[topic, partition]
        timestamp = self.world.log_time()
        log.append(Record(topic, partition, len(log), timestamp, out.key, out.value, tuple(out.headers)))
        waiting = self._waiting.pop((topic, partition), [])
        for host, arrived in waiting:
            host.after(self.world.latency(FETCH_SECONDS), lambda arrived=arrived: _wake(arrived))  # type: ignore[misc]
        return Position(partition, len(log) - 1, timestamp)

    def end(self, topic: str, partition: int) -> int:
        return len(self.records[topic, partition])

    async def fetch(self, host: Host, topic: str, partition: int, offset: int, limit: int) -> Sequence[Record]:
        """Wait for a record at `offset`; cancelling it loses nothing."""
        while offset >= self.end(topic, partition):
            arrived = host.future()
            self._waiting[topic, partition].append((host, arrived))
            await arrived
        return self.records[topic, partition][offset : offset + limit]

    def write(self, key: Key, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        """Apply a transaction in one step."""
        for table, changed in rows.items():
            stored = self.rows[table, key[1]]
            for name, row in changed.items():
                if row is None:
                    stored.pop(name, None)
                else:
                    stored[name] = row
        self.positions[key] = position

    def commit(self, host: Host, group: str, topic: str, partition: int, offset: int, note: str = "") -> None:
        """Commit an offset. Like a group, it ignores the commit if another member has joined since."""
        if self.members.get(group) is host:
            self.committed[group, topic, partition] = offset
            self.notes[group, topic, partition] = note


def _wake(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


class CrashBackend:
    """Implements `Backend` for one partition of one agent in one process."""

    def __init__(
        self, broker: Broker, host: Host, group: str, spec: AgentSpec, partition: int, is_current: IsCurrent
    ) -> None:
        self._broker = broker
        self._host = host
        self._group = group
        self._spec = spec
        self._partition = partition
        self._is_current = is_current
        self._next = 0
        self._epoch = 0
        self._commit: int | None = None

    @property
    def _key(self) -> Key:
        return self._spec.topic, self._partition

    async def take(self, rows: RowLoader) -> Recovered:
        if self._spec.tables:
            self._epoch = await self._host.call(APPEND_SECONDS, self._fence)
        recovered, encoded = await self._host.call(APPEND_SECONDS, self._read)
        for table, some in encoded.items():
            await rows.load(table, some)
        return recovered

    def _fence(self) -> int:
        self._broker.epochs[self._key] += 1
        return self._broker.epochs[self._key]

    def _read(self) -> tuple[Recovered, dict[str, dict[bytes, bytes]]]:
        broker = self._broker
        recovered = Recovered(
            position=broker.positions.get(self._key),
            start=0,
            end=broker.end(*self._key),
            committed=broker.committed.get((self._group, *self._key)),
        )
        return recovered, {table.name: dict(broker.rows[table.name, self._partition]) for table in self._spec.tables}

    def seek(self, offset: int) -> None:
        self._next = offset

    async def fetch(self, limit: int) -> Sequence[Record]:
        records = await self._broker.fetch(self._host, *self._key, self._next, limit)
        self._next = records[-1].offset + 1
        return records

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> Sequence[asyncio.Future[Any]]:
        def store() -> None:
            for record in records:
                self._broker.append(topic, partition, record)

        return [self._host.call(SEND_SECONDS, store, lane=(topic, partition))]

    async def checkpoint(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        await self._host.call(TRANSACTION_SECONDS, lambda: self._write(rows, position))

    def _write(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        if self._epoch != self._broker.epochs[self._key]:
            raise Fenced("fenced", f"{self._spec.topic}[{self._partition}] has another owner")
        self._broker.write(self._key, rows, position)

    async def durable(self, offset: int) -> None:
        """Return at once: only durable records are fetched."""

    def commit(self, offset: int) -> None:
        self._commit = offset
        self._host.after(self._host.world.latency(COMMIT_SECONDS), lambda: self._committed(offset), lane=self)

    def _committed(self, offset: int) -> None:
        self._broker.commit(self._host, self._group, *self._key, offset)

    async def close(self) -> None:
        if self._commit is not None:
            offset = self._commit
            await self._host.call(APPEND_SECONDS, lambda: self._committed(offset), lane=self)


class CrashLog:
    """Implements `Log` in one process."""

    state = "ok"

    def __init__(self, broker: Broker, host: Host, clock: Clock) -> None:
        self._broker = broker
        self._host = host
        self._clock = clock

    @property
    def warnings(self) -> Sequence[Any]:
        return ()

    def partition_of(self, key: bytes, partitions: int) -> int:
        return int((murmur2(key) & 0x7FFFFFFF) % partitions)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def create(self, topics: Sequence[TopicSpec]) -> None: ...

    async def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> Position:
        record_size(topic, key, value, headers)
        out = NewRecord(key, value, headers)
        return await self._host.call(
            APPEND_SECONDS, lambda: self._broker.append(topic, partition, out), lane=(topic, partition, "append")
        )

    async def has(self, topic: str) -> bool:
        return any(known == topic for known, _ in self._broker.records)

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        return [(0, self._broker.end(topic, number)) for number in range(self._broker.partitions)]

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        records = self._broker.records[topic, partition]
        return next((record.offset for record in records if record.timestamp >= timestamp), len(records))

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        yield await self._host.call(APPEND_SECONDS, lambda: self._broker.records[topic, partition][start:end])

    async def follow(
        self, group: str, topic: str, handle: Handle, *, batch: int = 500, taken: Taken | None = None
    ) -> Follower:
        follower = CrashFollower(self._broker, self._host, self._clock, group, topic, handle, batch, taken)
        await follower.start()
        return follower


class CrashFollower:
    """Implements `Follower`: one batch of each partition in hand, committed some time after it was handled."""

    def __init__(
        self,
        broker: Broker,
        host: Host,
        clock: Clock,
        group: str,
        topic: str,
        handle: Handle,
        batch: int,
        taken: Taken | None,
    ) -> None:
        self._broker = broker
        self._host = host
        self._clock = clock
        self._group = group
        self._topic = topic
        self._handle = handle
        self._batch = batch
        self._taken = taken
        self._stopping = False
        self._idle: set[int] = set()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._next: dict[int, int] = {}

    async def start(self) -> None:
        await self._host.call(APPEND_SECONDS, self._join)
        for partition in range(self._broker.partitions):
            reading = self._follow(partition)
            self._tasks[partition] = self._clock.spawn(reading, name=f"{self._topic}[{partition}] is followed")

    def _join(self) -> None:
        self._broker.members[self._group] = self._host

    async def stop(self) -> None:
        self._stopping = True
        for partition in self._idle:
            self._tasks[partition].cancel()
        await asyncio.wait(self._tasks.values())

    async def _follow(self, partition: int) -> None:
        key = (self._group, self._topic, partition)
        committed = self._broker.committed.get(key)
        if self._taken is not None:
            end = self._broker.end(self._topic, partition)
            await self._taken(Committed(partition, committed, self._broker.notes.get(key, ""), end))
        self._next[partition] = committed or 0
        while not self._stopping:
            self._idle.add(partition)
            offset = self._next[partition]
            records = await self._broker.fetch(self._host, self._topic, partition, offset, self._batch)
            self._idle.discard(partition)
            if not self.fresh:
                return  # revoked since
            if self._next[partition] != offset:
                continue  # sought meanwhile
            self._next[partition] = records[-1].offset + 1
            note = await self._handle(records)
            self._commit(partition, records[-1].offset + 1, note or "")

    @property
    def places(self) -> Mapping[int, int]:
        return self._next

    def seek(self, partition: int, offset: int) -> None:
        self._next[partition] = offset

    @property
    def fresh(self) -> bool:
        """False once another process has joined. On Kafka a frozen member is not fresh before the group answers it."""
        return self._broker.members.get(self._group) is self._host

    def _commit(self, partition: int, offset: int, note: str) -> None:
        self._host.after(
            self._host.world.latency(COMMIT_SECONDS),
            lambda: self._broker.commit(self._host, self._group, self._topic, partition, offset, note),
            lane=(self, partition),
        )
