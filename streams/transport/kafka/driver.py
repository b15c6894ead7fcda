"""The Kafka driver: the connections of a worker, and for each partition fencing, recovery and transactions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from ports.log import AgentSpec, LogFailed, LogUnavailable, Record
from streams import topics
from streams.transport.faust import membership
from streams.transport.kafka.client import PartitionReader, TransactionalWriter
from streams.transport.kafka.group import GroupMember
from streams.transport.kafka.log import KafkaLog
from streams.transport.kafka.recovery import Recovery
from streams.transport.kafka.wire import Written, append_batches
from streams.transport.partition.backend import POSITION_KEY, NewRecord, PositionRow, Recovered, RowLoader
from streams.transport.partition.ownership import IsCurrent, Superseded
from streams.transport.partition.positions import decode_position, encode_position

logger = logging.getLogger(__name__)

# Seconds between two commits of the group's offsets.
COMMIT_SECONDS = 0.5
# A partition that is given up waits so long for the commit of its offset; its next owner repeats the work otherwise.
LAST_COMMIT_SECONDS = 5.0
DEFAULT_PORT = 9092


class KafkaTransport(membership.GroupTransport):
    """`kafka://host:port[,host:port]`."""

    Consumer = GroupMember
    default_port = DEFAULT_PORT

    def __init__(self, url: Any, app: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(url, app, loop)
        self.servers = servers(url)
        self._log = KafkaLog(
            self.servers, app.clock, replication=app.replication, topic_config=app.topic_config, fail=app.fail
        )
        self.reader = PartitionReader(self.servers, app.clock)
        self.recovery = Recovery(self.servers, app.clock)
        self.era = 0
        """Number of times that others may have had our partitions."""
        self._offsets: dict[TopicPartition, int] = {}
        self._committing = asyncio.Lock()
        self._committer: asyncio.Task[None] | None = None

    @property
    def log(self) -> KafkaLog:
        return self._log

    @property
    def shared(self) -> KafkaLog:
        return self._log

    def backend(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> KafkaBackend:
        return KafkaBackend(self, spec, number, is_current)

    async def open(self) -> None:
        """Start the reader of all partitions that may be assigned; called before the group is joined."""
        app = self.app
        tps = [TopicPartition(topic, number) for topic in app.attached_topics for number in range(app.partitions)]
        await self.reader.start(tps)
        self._committer = app.clock.spawn(self._commit_offsets_often(), name="kafka group offsets")

    async def close(self) -> None:
        if self._committer is not None:
            self._committer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._committer
            self._committer = None
        await self.recovery.stop()
        await self.reader.stop()

    # ---- offsets of the group: step agents resume there; for agents with tables only lag tools use them

    def begin_anew(self) -> None:
        """Drop all offsets of the parts until now: others may have had their partitions, and gone on from there."""
        self.era += 1
        self._offsets.clear()

    def commit_soon(self, tp: TopicPartition, offset: int, era: int) -> None:
        if era == self.era:
            self._offsets[tp] = offset

    async def committed(self, tp: TopicPartition) -> int | None:
        offset: int | None = await self.app.consumer.group.committed(tp)
        return offset

    async def commit_now(self) -> None:
        async with self._committing:  # after waiting here, the caller's offset is written, too
            if self.app.consumer.joining:
                return  # with the present generation it would be refused, and cost the membership
            offsets, self._offsets = self._offsets, {}
            if not offsets:
                return
            era, committed = self.era, False
            try:
                await self.app.consumer.commit_offsets(offsets)
                committed = True
            except (KafkaError, LogUnavailable, AssertionError) as error:  # the group has rebalanced
                logger.warning("group offsets not committed: %s", type(error).__name__)
            finally:
                if not committed and era == self.era:
                    self._offsets = {**offsets, **self._offsets}

    async def _commit_offsets_often(self) -> None:
        while True:
            await self.app.clock.sleep(COMMIT_SECONDS)
            await self.commit_now()


def servers(urls: Iterable[Any]) -> list[str]:
    """Return the brokers of Faust's URLs as `host:port`."""
    return [f"{_host(one.host)}:{one.port or DEFAULT_PORT}" for one in urls]


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name


class _ChangelogRows:
    """Takes the records of a partition's changelogs: loads the rows, and keeps the position row."""

    def __init__(self, rows: RowLoader, changelogs: Mapping[str, TopicPartition]) -> None:
        self.position: bytes | None = None
        self._rows = rows
        self._tables = {tp: table for table, tp in changelogs.items()}
        self._first = next(iter(self._tables))
        """The changelog to which checkpoints write the position row."""

    async def add(self, tp: TopicPartition, records: dict[bytes, bytes | None]) -> None:
        if tp == self._first:
            self.position = records.pop(POSITION_KEY, self.position)
        await self._rows.load(self._tables[tp], records)


class KafkaBackend:
    """Implements `Backend` for one partition of one agent."""

    def __init__(self, transport: KafkaTransport, spec: AgentSpec, number: int, is_current: IsCurrent) -> None:
        app = transport.app
        self._transport = transport
        self._reader = transport.reader
        self._producer = transport.log.producer
        self._clock = app.clock
        self._is_current = is_current
        self._era = transport.era
        self._tp = TopicPartition(spec.topic, number)
        self._changelogs = {
            table.name: TopicPartition(topics.prefixed(app.prefix, topics.changelog(table.name)), number)
            for table in spec.tables
        }
        self._transactional_id = f"{app.conf.id}-{spec.name}-{number}"
        self._writer: TransactionalWriter | None = None

    async def take(self, rows: RowLoader) -> Recovered:
        position: PositionRow | None = None
        committed: int | None = None
        if self._changelogs:
            await self._fence()
            read = _ChangelogRows(rows, self._changelogs)
            await self._transport.recovery.read(self._changelogs.values(), read.add)
            position = None if read.position is None else decode_position(read.position)
        else:
            committed = await self._transport.committed(self._tp)
        start, end = await self._reader.range(self._tp)
        self._check()
        return Recovered(position, start, end, committed)

    async def _fence(self) -> None:
        """Fence the former owner: it cannot write the changelogs any more."""
        self._check()
        self._writer = TransactionalWriter(self._transport.servers, self._transactional_id, self._clock)
        await self._writer.start()
        self._check()

    def _check(self) -> None:
        if not self._is_current():
            raise Superseded

    def seek(self, offset: int) -> None:
        self._reader.seek(self._tp, offset)

    async def fetch(self, limit: int) -> Sequence[Record]:
        return await self._reader.fetch(self._tp, limit)

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> Sequence[asyncio.Future[Any]]:
        if partition not in (self._producer.client.cluster.partitions_for_topic(topic) or ()):
            raise LogFailed("topic_unknown", f"no partition {topic}[{partition}]; a send to it would never end")
        return append_batches(self._producer, TopicPartition(topic, partition), records)

    async def checkpoint(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        writer = self._writer
        if writer is None:
            raise LogFailed("not_taken", f"{self._tp.topic}[{self._tp.partition}] was never taken")
        records: dict[TopicPartition, list[Written]] = {
            tp: [(key, row, ()) for key, row in rows.get(table, {}).items()] for table, tp in self._changelogs.items()
        }
        first = next(iter(self._changelogs.values()))
        records[first].append((POSITION_KEY, encode_position(position), ()))
        await writer.write(records)

    async def durable(self, offset: int) -> None:
        """Return at once: the broker hands out only records that all in-sync replicas have."""

    def commit(self, offset: int) -> None:
        self._transport.commit_soon(self._tp, offset, self._era)

    async def close(self) -> None:
        self._reader.drop(self._tp)
        try:
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(LAST_COMMIT_SECONDS):
                    await self._transport.commit_now()
        finally:
            if self._writer is not None:
                await self._writer.stop()
