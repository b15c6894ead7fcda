"""A driver on the memory log, to test Faust's side of the transport without a broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiokafka.partitioner import murmur2
from yarl import URL

from bridge.clock import HostClock
from ports.log import AgentSpec, Follower, Handle, Header, LogWarning, Position, Record, Taken, TopicSpec
from streams.transport.app import CeremonyApp
from streams.transport.faust.membership import GroupTransport
from streams.transport.partition.checkpoints import Limits
from streams.transport.partition.ownership import IsCurrent
from tests.transport.memory import MemoryBackend, MemoryLog


class MemoryCommitLog:
    """Implements `Log` on a MemoryLog, except `follow`."""

    state = "ok"

    def __init__(self, memory: MemoryLog) -> None:
        self.memory = memory
        self.topics: dict[str, TopicSpec] = {}

    @property
    def warnings(self) -> Sequence[LogWarning]:
        return ()

    def partition_of(self, key: bytes, partitions: int) -> int:
        return int((murmur2(key) & 0x7FFFFFFF) % partitions)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def create(self, topics: Sequence[TopicSpec]) -> None:
        self.topics.update({spec.name: spec for spec in topics})

    async def has(self, topic: str) -> bool:
        return topic in self.topics

    async def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> Position:
        record = self.memory.append(topic, partition, key, value, headers)
        return Position(partition, record.offset, record.timestamp)

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        count = self.topics[topic].partitions
        return [(self.memory.starts[topic, n], self.memory.end(topic, n)) for n in range(count)]

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        records = self.memory.records[topic, partition]
        return next((one.offset for one in records if one.timestamp >= timestamp), self.memory.end(topic, partition))

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        yield [record for record in self.memory.records[topic, partition] if start <= record.offset < end]

    async def follow(
        self, group: str, topic: str, handle: Handle, *, batch: int = 500, taken: Taken | None = None
    ) -> Follower:
        raise NotImplementedError("nothing follows the memory log")


class MemoryTransport(GroupTransport):
    """Assigns every partition to this process."""

    def __init__(self, memory: MemoryLog, app: Any) -> None:
        super().__init__([URL("memory://")], app)
        self.memory = memory
        self._log = MemoryCommitLog(memory)
        self.closed = False

    @property
    def log(self) -> MemoryCommitLog:
        return self._log

    def backend(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> MemoryBackend:
        return self.memory.backend(spec, number)

    async def close(self) -> None:
        self.closed = True


def memory_app(memory: MemoryLog, *, partitions: int = 2, limits: Limits | None = None) -> CeremonyApp:
    """Return an app on the memory log, with topics `x.commands` and `x.deadletters`."""
    topics = [TopicSpec("x.commands", partitions), TopicSpec("x.deadletters", partitions)]
    app = CeremonyApp(
        "memory", clock=HostClock(), partitions=partitions, topics=topics, prefix="x", broker="memory://", limits=limits
    )
    app.transport = MemoryTransport(memory, app)
    return app
