"""aiokafka as the driver needs it: producers, readers, recovery."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from ports.clock import Clock
from ports.log import LARGEST_RECORD_BYTES, Fenced, LogFailed, LogUnavailable, Record
from streams.transport.kafka.wire import Written, append_batches, give_records, packed, retrieve

# Bytes of a produce batch of more than one record: below LARGEST_BATCH_BYTES with its framing.
PRODUCE_BATCH_BYTES = 900_000
# How long a write is tried before it has failed for good, which ends the worker.
REQUEST_TIMEOUT_MS = 120_000
# How long a broker holds an empty fetch: aiokafka has one in flight per broker, so others wait as long.
FETCH_WAIT_MS = 20
# The same where no others are: the fetch asks for every partition that is read. It costs broker and client some
# tenths of a millisecond, whether it brings something or not, and a worker has one under way for each topic that it
# follows.
IDLE_WAIT_MS = 100
# How long the next fetch waits for what the last one brought to be taken. None at all, and it is sent without those
# partitions, whose next records then wait for `FETCH_WAIT_MS`; as long as aiokafka's 0.1 s, and a busy one holds all.
DRAIN_SECONDS = 0.002
# Bytes fetched of one partition at a time, all of which may be in memory; a larger record comes alone.
FETCH_BYTES = 1024 * 1024
TRANSACTION_TIMEOUT_MS = 10_000
STOP_SECONDS = 5.0
# A write refused for one of these is refused again: the worker ends. Other failures give up the partition only.
_REFUSALS = (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)


def new_producer(servers: Sequence[str], **options: Any) -> AIOKafkaProducer:
    """Idempotent, acks=all, without linger: batches are formed by the agents."""
    return AIOKafkaProducer(
        bootstrap_servers=list(servers),
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        max_batch_size=PRODUCE_BATCH_BYTES,
        max_request_size=LARGEST_RECORD_BYTES + 64 * 1024,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        retry_backoff_ms=20,
        **options,
    )


def new_reader(servers: Sequence[str], *, wait_ms: int = FETCH_WAIT_MS) -> AIOKafkaConsumer:
    """A consumer without a group: whoever uses it assigns and seeks before it polls."""
    return AIOKafkaConsumer(
        bootstrap_servers=list(servers),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        fetch_max_wait_ms=wait_ms,
        max_partition_fetch_bytes=FETCH_BYTES,
        retry_backoff_ms=50,
    )


def fetch_cheaply(consumer: AIOKafkaConsumer, in_a_hurry: Callable[[], bool] = lambda: False) -> None:
    """Pack fetches quickly, and let one wait for `IDLE_WAIT_MS` where nothing can wait for its end.

    The consumer has been started. What has come and is not taken yet is left out of a fetch, and waits for its end;
    `in_a_hurry`: something may all the same.
    """
    fetcher = consumer._fetcher
    actions = fetcher._get_actions_per_node

    def cheap_actions(assignment: Any) -> Any:
        left_out = fetcher._records or in_a_hurry()
        fetcher._fetch_max_wait_ms = FETCH_WAIT_MS if left_out else IDLE_WAIT_MS
        requests, *others = actions(assignment)
        return ([(node, packed(request)) for node, request in requests], *others)

    fetcher._get_actions_per_node = cheap_actions


async def stop_reader(reader: AIOKafkaConsumer, clock: Clock) -> None:
    """Stop a reader, also one that has just been assigned: aiokafka's task for that must have begun, to end well."""
    await clock.sleep(0)
    await reader.stop()


class TransactionalWriter:
    """Writes in transactions under one transactional id; the last who started it owns it, all others are fenced."""

    def __init__(self, servers: Sequence[str], transactional_id: str, clock: Clock) -> None:
        self._id = transactional_id
        self._clock = clock
        self._starting: asyncio.Task[None] | None = None
        self._producer = new_producer(
            servers, transactional_id=transactional_id, transaction_timeout_ms=TRANSACTION_TIMEOUT_MS
        )

    async def start(self) -> None:
        """From here on a former owner cannot write."""
        # aiokafka leaves a connection open when its start is cancelled: let it end, `stop` closes it.
        self._starting = self._clock.spawn(self._producer.start(), name=f"{self._id} is fenced")
        await asyncio.shield(self._starting)

    async def write(self, records: Mapping[TopicPartition, Sequence[Written]]) -> None:
        """All of it or nothing. Raises Fenced, KafkaError; after an error the writer is of no more use."""
        futures: list[Any] = []
        try:
            await self._producer.begin_transaction()
            self._producer._txn_manager.wait_for_transaction_end().add_done_callback(retrieve)
            for tp, some in records.items():
                if some:
                    await self._producer.partitions_for(tp.topic)
                    futures += append_batches(self._producer, tp, some)
            for written in futures:
                await written
            await self._producer.commit_transaction()
        except BaseException as error:
            for future in [*futures, self._producer._txn_manager.wait_for_transaction_end()]:
                if future is not None:
                    future.add_done_callback(retrieve)
            if isinstance(error, ProducerFenced):
                raise Fenced("fenced", f"{self._id} has another owner") from error
            if isinstance(error, _REFUSALS):
                raise LogFailed("checkpoint_refused", f"{self._id} ({type(error).__name__})") from error
            raise

    async def stop(self) -> None:
        with contextlib.suppress(KafkaError, TimeoutError):
            async with self._clock.timeout(STOP_SECONDS):
                if self._starting is not None:
                    await asyncio.wait({self._starting})
                    retrieve(self._starting)
                await self._producer.stop()


class PartitionReader:
    """Reads the partitions that are ours. All are assigned once and paused; taking one seeks and resumes it."""

    def __init__(self, servers: Sequence[str], clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._client: AIOKafkaConsumer | None = None
        self._waiting: dict[TopicPartition, asyncio.Future[None]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._asked = 0
        """Partitions being taken: what is asked for them, and their first fetch, wait for the fetch under way."""

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        if self._client is None:
            raise LogUnavailable("log_unavailable", "the reader is not connected to Kafka")
        return self._client

    async def start(self, tps: Sequence[TopicPartition]) -> None:
        self._client = new_reader(self._servers)
        await self._consumer.start()
        give_records(self._consumer, DRAIN_SECONDS)
        fetch_cheaply(self._consumer, lambda: self._asked > 0)
        self._consumer.assign(list(tps))
        for tp in tps:
            self._consumer.seek(tp, 0)
        self._consumer.pause(*tps)
        self._pump = self._clock.spawn(self._wake(), name="kafka reader wakes parts")

    async def stop(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump
            self._pump = None
        client, self._client = self._client, None
        if client is not None:
            await stop_reader(client, self._clock)

    async def range(self, tp: TopicPartition) -> tuple[int, int]:
        """(start, end) of the log of a partition."""
        self._asked += 1
        try:
            starts = await self._consumer.beginning_offsets([tp])
            ends = await self._consumer.end_offsets([tp])
        finally:
            self._asked -= 1
        return starts[tp], ends[tp]

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._consumer.seek(tp, offset)
        self._consumer.resume(tp)

    def drop(self, tp: TopicPartition) -> None:
        if self._client is not None:
            self._client.pause(tp)

    async def fetch(self, tp: TopicPartition, limit: int) -> list[Record]:
        """At least one record; nothing is lost when it is cancelled, for records leave the consumer in one step."""
        while True:
            fetched: Mapping[TopicPartition, list[Record]]
            fetched = await self._consumer.getmany(tp, timeout_ms=0, max_records=limit)
            if fetched:
                return fetched[tp]
            if tp in self._consumer._fetcher._records:
                await self._clock.sleep(0.001)
                continue
            waiter = self._waiting[tp] = asyncio.get_running_loop().create_future()
            await waiter

    async def _wake(self) -> None:
        """Wake the parts that have something: each waiting in `getmany` itself would be woken for everyone's data."""
        fetcher = self._consumer._fetcher
        while True:
            fetched = fetcher._create_fetch_waiter()
            for tp in list(fetcher._records):
                waiter = self._waiting.pop(tp, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
            with contextlib.suppress(KafkaError):  # the part that asks again gets it from `getmany`
                await fetched
