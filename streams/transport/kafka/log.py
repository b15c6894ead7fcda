"""Kafka beside the agents: appends, reads for operators, and followers for bridges."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from ports.clock import Clock
from ports.log import (
    Follower,
    Handle,
    Header,
    LogFailed,
    LogUnavailable,
    LogWarning,
    Position,
    Record,
    RecordTooLarge,
    Taken,
    TopicSpec,
)
from streams.outages import LOG_WAITS, NeighbourOutage
from streams.transport.kafka.client import DRAIN_SECONDS, new_producer, new_reader, stop_reader
from streams.transport.kafka.follower import GroupFollower
from streams.transport.kafka.topics import check_topics, ensure_topics
from streams.transport.kafka.wire import give_records
from streams.transport.partition.batch import record_size
from streams.transport.partition.partitioner import partition_of

logger = logging.getLogger(__name__)

# Time `append` waits for the acknowledgement before it raises LogUnavailable.
APPEND_SECONDS = 10.0
# Time a broker holds an empty fetch at the end of a topic; a new record ends the wait.
TAIL_WAIT_MS = 500
# Interval of the checks that Kafka answers.
WATCH_SECONDS = 1.0
# Interval of the checks that the topics still have the settings that they need.
CHECK_SECONDS = 3600.0


class KafkaLog:
    """Implements `TailedLog`. `fail` is called when a follower ends with an exception."""

    def __init__(
        self,
        servers: Sequence[str],
        clock: Clock,
        *,
        replication: int = 1,
        topic_config: Mapping[str, str] | None = None,
        fail: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._servers = servers
        self._clock = clock
        self._replication = replication
        self._topic_config = dict(topic_config or {})
        self._fail = fail
        self._producer: AIOKafkaProducer | None = None
        self._reader: AIOKafkaConsumer | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._checker: asyncio.Task[None] | None = None
        self._state = "not connected"
        self._warnings: Sequence[LogWarning] = ()
        self._outage = NeighbourOutage("log", clock, LOG_WAITS)

    @property
    def state(self) -> str:
        return self._state

    @property
    def warnings(self) -> Sequence[LogWarning]:
        return self._warnings

    @property
    def producer(self) -> AIOKafkaProducer:
        """The process's only idempotent producer, which also sends effects. Raises LogUnavailable."""
        if self._producer is None:
            raise LogUnavailable("log_unavailable", "not connected to Kafka")
        return self._producer

    def partition_of(self, key: bytes, partitions: int) -> int:
        return partition_of(key, partitions)

    async def start(self) -> None:
        if self._producer is not None:
            return
        producer, reader = new_producer(self._servers), new_reader(self._servers)
        try:
            await producer.start()
            await reader.start()
        except BaseException as error:  # also when the start is cancelled
            await producer.stop()
            await reader.stop()
            if not isinstance(error, KafkaError):
                raise
            self._state = f"no Kafka at {','.join(self._servers)}"
            raise LogUnavailable("log_unavailable", self._state) from error
        self._producer, self._reader = producer, reader
        self._state = "ok"
        self._watcher = self._clock.spawn(self._watch(), name="kafka is watched")

    async def stop(self) -> None:
        producer, self._producer = self._producer, None
        reader, self._reader = self._reader, None
        tasks = [task for task in (self._watcher, self._checker) if task is not None]
        self._watcher = self._checker = None
        self._state = "not connected"
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for client in (producer, reader):
            if client is not None:
                with contextlib.suppress(KafkaError, TimeoutError):
                    async with self._clock.timeout(10.0):
                        await client.stop()

    async def create(self, topics: Sequence[TopicSpec]) -> None:
        """Create missing topics, check all of them now and once an hour from now on."""
        async with self._administration() as admin:
            found = await ensure_topics(
                admin,
                topics,
                replication=self._replication,
                extra=self._topic_config,
                clock=self._clock,
                bootstrap=",".join(self._servers),
            )
        self._warn(found)
        for spec in topics:  # loads the topic's leaders, so that sends need not wait for metadata
            await self.producer.partitions_for(spec.name)
        if self._checker is None:
            self._checker = self._clock.spawn(self._check_hourly(topics), name="kafka topics are checked")

    async def has(self, topic: str) -> bool:
        async with self._administration() as admin:
            return topic in await admin.list_topics()

    @contextlib.asynccontextmanager
    async def _administration(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=list(self._servers))
        try:
            await admin.start()
            yield admin
        except KafkaError as error:
            raise LogUnavailable("log_unavailable", f"topics cannot be looked at ({type(error).__name__})") from error
        finally:
            await admin.close()

    def _warn(self, found: Sequence[LogWarning]) -> None:
        """Log each new shortcoming once."""
        for warning in found:
            if warning not in self._warnings:
                logger.warning("%s", warning)
        self._warnings = found

    async def _check_hourly(self, topics: Sequence[TopicSpec]) -> None:
        """End the worker once somebody has given a topic a setting that breaks a promise."""
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            try:
                async with self._administration() as admin:
                    found = await check_topics(
                        admin,
                        topics,
                        replication=self._replication,
                        extra=self._topic_config,
                        bootstrap=",".join(self._servers),
                    )
                self._warn(found)
            except LogUnavailable as error:
                logger.warning("topics not checked: %s", error)
            except LogFailed as failure:
                if self._fail is None:
                    raise
                self._fail(failure)
                return

    async def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> Position:
        record_size(topic, key, value, headers)
        try:
            async with self._clock.timeout(APPEND_SECONDS):
                sent = await self.producer.send(topic, value, key, partition=partition, headers=list(headers))
                done = await sent
        except MessageSizeTooLargeError as error:
            raise RecordTooLarge(f"{len(value)} bytes for {topic}") from error
        except TimeoutError:
            self._state = "writes are not acknowledged"
            raise LogUnavailable("log_unavailable", f"{topic}[{partition}] not acknowledged in time") from None
        except KafkaError as error:
            raise LogUnavailable("log_unavailable", f"{topic}[{partition}] ({type(error).__name__})") from error
        self._state = "ok"
        return Position(partition, done.offset, done.timestamp)

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        reader = self._connected()
        try:
            async with self._clock.timeout(APPEND_SECONDS):
                partitions = sorted(await self.producer.partitions_for(topic))
                tps = [TopicPartition(topic, number) for number in partitions]
                starts, ends = await reader.beginning_offsets(tps), await reader.end_offsets(tps)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable("log_unavailable", f"ends of {topic} ({type(error).__name__})") from error
        return [(starts[tp], ends[tp]) for tp in tps]

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        reader, tp = self._connected(), TopicPartition(topic, partition)
        try:
            async with self._clock.timeout(APPEND_SECONDS):
                found = (await reader.offsets_for_times({tp: max(timestamp, 0)}))[tp]
                return (await reader.end_offsets([tp]))[tp] if found is None else int(found.offset)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable("log_unavailable", f"{topic}[{partition}] ({type(error).__name__})") from error

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        if start >= end:
            return  # a reader stopped before its task has run cannot be stopped cleanly
        tp = TopicPartition(topic, partition)
        reader = new_reader(self._servers)
        try:
            await reader.start()
            give_records(reader, DRAIN_SECONDS)
            reader.assign([tp])
            reader.seek(tp, start)
            while await reader.position(tp) < end:
                fetched = await reader.getmany(tp, timeout_ms=1000, max_records=1000)
                records = [record for record in fetched.get(tp, ()) if record.offset < end]
                if records:
                    yield records
        except KafkaError as error:
            raise LogUnavailable("log_unavailable", f"{topic}[{partition}] ({type(error).__name__})") from error
        finally:
            await stop_reader(reader, self._clock)

    async def tail(self, topic: str, partition: int, start: int) -> AsyncIterator[Sequence[Record]]:
        tp = TopicPartition(topic, partition)
        reader = new_reader(self._servers, wait_ms=TAIL_WAIT_MS)
        try:
            await reader.start()
            give_records(reader, DRAIN_SECONDS)
            reader.assign([tp])
            reader.seek(tp, start)
            while True:
                fetched = await reader.getmany(tp, timeout_ms=1000, max_records=1000)
                if records := fetched.get(tp):
                    yield records
        except KafkaError as error:
            raise LogUnavailable("log_unavailable", f"{topic}[{partition}] ({type(error).__name__})") from error
        finally:
            await stop_reader(reader, self._clock)

    async def follow(
        self, group: str, topic: str, handle: Handle, *, batch: int = 500, taken: Taken | None = None
    ) -> Follower:
        follower = GroupFollower(self._servers, self._clock, group, topic, handle, batch, self._fail, taken)
        try:
            await follower.start()
        except KafkaError as error:
            await follower.stop()
            raise LogUnavailable("log_unavailable", f"group {group} cannot be joined") from error
        return follower

    def _connected(self) -> AIOKafkaConsumer:
        if self._reader is None:
            raise LogUnavailable("log_unavailable", "not connected to Kafka")
        return self._reader

    async def _watch(self) -> None:
        reader = self._connected()
        while True:
            await self._clock.sleep(WATCH_SECONDS)
            try:
                async with self._clock.timeout(WATCH_SECONDS * 2):
                    answered = await reader._client._metadata_update(reader._client.cluster, [])
            except (KafkaError, TimeoutError):
                answered = False
            self._state = "ok" if answered else "no answer"
            if answered:
                self._outage.answered()
            else:
                self._outage.failed("log_unavailable", f"Kafka at {','.join(self._servers)} does not answer")
