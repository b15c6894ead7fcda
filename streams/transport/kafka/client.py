"""Producers and readers of aiokafka, configured for the driver."""

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
# A write is retried for this long; after it the write has failed for good, which ends the worker.
REQUEST_TIMEOUT_MS = 120_000
# Time a broker holds an empty fetch. aiokafka has one in flight per broker, so other requests wait as long.
FETCH_WAIT_MS = 20
# The same for a fetch of all partitions that are read, for which no other request waits. Each fetch costs broker and
# client some tenths of a millisecond, and a worker has one in flight for each topic that it follows.
IDLE_WAIT_MS = 100
# Time the next fetch waits until the records of the last one are taken. With 0 it is sent without those partitions,
# whose next records then wait for FETCH_WAIT_MS; with aiokafka's default of 0.1 s, one busy partition delays all.
DRAIN_SECONDS = 0.002
# Bytes fetched of one partition at a time, all held in memory; a larger record comes alone.
FETCH_BYTES = 1024 * 1024
TRANSACTION_TIMEOUT_MS = 10_000
STOP_SECONDS = 5.0
# A write refused with one of these errors would be refused again, so the worker ends. Others cost only the partition.
_REFUSALS = (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)


def new_producer(servers: Sequence[str], **options: Any) -> AIOKafkaProducer:
    """Return an idempotent producer with acks=all and without linger, as the agents form batches."""
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
    """Return a consumer without a group; the caller assigns partitions and seeks before polling."""
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
    """Encode fetches quickly, and let a fetch wait for IDLE_WAIT_MS when no partition waits for its end.

    The consumer must be started. A partition whose records are not taken yet is left out of a fetch and waits for its
    end; `in_a_hurry`: another request may wait for it, too.
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
    """Stop a reader, also one that was just assigned: aiokafka's task for that ends cleanly only after it has begun."""
    await clock.sleep(0)
    await reader.stop()


class TransactionalWriter:
    """Writes transactions under one transactional id. The last one to start owns the id; all others are fenced."""

    def __init__(self, servers: Sequence[str], transactional_id: str, clock: Clock) -> None:
        self._id = transactional_id
        self._clock = clock
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._producer = new_producer(
            servers, transactional_id=transactional_id, transaction_timeout_ms=TRANSACTION_TIMEOUT_MS
        )

    async def start(self) -> None:
        """Fence the former owner: it cannot write any more."""
        # A cancelled start of aiokafka leaves a connection open; so it runs to its end, and `stop` closes it.
        self._starting = self._clock.spawn(self._producer.start(), name=f"{self._id} is fenced")
        await asyncio.shield(self._starting)

    async def write(self, records: Mapping[TopicPartition, Sequence[Written]]) -> None:
        """Write all records or none. Raises Fenced, LogFailed, KafkaError, which make the writer unusable."""
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
            cause = error.__cause__ if isinstance(error, LogFailed) else error  # the producer had failed before a batch
            if isinstance(cause, ProducerFenced):
                raise Fenced("fenced", f"{self._id} has another owner") from cause
            if isinstance(cause, _REFUSALS):
                raise LogFailed("checkpoint_refused", f"{self._id} ({type(cause).__name__})") from cause
            if isinstance(cause, KafkaError):
                raise cause from None
            raise

    async def stop(self) -> None:
        """Close the producer within some STOP_SECONDS. Where the caller is cancelled, it is closed all the same."""
        if self._stopping is None:
            self._stopping = self._clock.spawn(self._stop(), name=f"{self._id} is closed")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        if self._starting is not None:
            if not await self._done(self._starting):
                self._starting.cancel()
                await asyncio.wait({self._starting})
            retrieve(self._starting)
        stopping = self._clock.spawn(self._producer.stop(), name=f"{self._id} stops")
        if not await self._done(stopping):
            stopping.cancel()
            await asyncio.wait({stopping})
        if stopping.cancelled() or stopping.exception() is not None:
            await self._producer.client.close()

    async def _done(self, task: asyncio.Task[None]) -> bool:
        """Wait for a task, up to STOP_SECONDS."""
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(STOP_SECONDS):
                await asyncio.wait({task})
        return task.done()


class PartitionReader:
    """Reads the owned partitions. All are assigned once and paused; taking a partition seeks and resumes it."""

    def __init__(self, servers: Sequence[str], clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._client: AIOKafkaConsumer | None = None
        self._waiting: dict[TopicPartition, asyncio.Future[None]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._asked = 0
        """Number of partitions being taken: their requests and first fetch wait for the fetch in flight."""

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
        """Return (start, end) of a partition's log."""
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
        """Return at least one record. Cancelling it loses nothing, as records leave the consumer in one step."""
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
        """Wake the parts whose records have come; in `getmany` itself all parts would wake for any of them."""
        fetcher = self._consumer._fetcher
        while True:
            fetched = fetcher._create_fetch_waiter()
            for tp in list(fetcher._records):
                waiter = self._waiting.pop(tp, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
            with contextlib.suppress(KafkaError):  # the part gets the error from `getmany` when it asks again
                await fetched
