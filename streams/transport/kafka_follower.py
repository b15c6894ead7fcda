"""Following a topic on Kafka in a consumer group of its own, for the bridges."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from steps.ports import Clock
from streams.transport.contract import LogFailed, Record
from streams.transport.kafka_client import DRAIN_SECONDS, FETCH_BYTES, FETCH_WAIT_MS, to_records

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 0.5
"""Seconds between two commits: one after every batch would cost the broker more than the batch."""
POLL_MS = 1000

Handle = Callable[[Sequence[Record]], Awaitable[None]]


class GroupFollower(ConsumerRebalanceListener):  # type: ignore[misc]
    """Fulfils `contract.Follower`: of each partition one batch in hand, committed after `handle` returned.

    A partition whose batch waits holds up no other.
    """

    def __init__(
        self,
        servers: Sequence[str],
        clock: Clock,
        group: str,
        topic: str,
        handle: Handle,
        batch: int,
        fail: Callable[[BaseException], None] | None,
    ) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=list(servers),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            session_timeout_ms=6_000,
            heartbeat_interval_ms=1_000,
            max_poll_interval_ms=600_000,
            partition_assignment_strategy=[RangePartitionAssignor],
        )
        self._topic = topic
        self._handle = handle
        self._batch = batch
        self._clock = clock
        self._fail = fail
        self._in_hand: dict[TopicPartition, asyncio.Task[None]] = {}
        self._handled: dict[TopicPartition, int] = {}
        """Offsets behind what was handled and is not committed yet."""
        self._committing = asyncio.Lock()
        self._stopping = False
        self._poll: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._consumer.start()
        self._consumer._fetcher._prefetch_backoff = DRAIN_SECONDS
        self._consumer.subscribe([self._topic], listener=self)
        self._task = self._clock.spawn(self._run(), name=f"{self._topic} is followed")

    async def stop(self) -> None:
        """Finish the batches in hand and commit. One whose handling is cancelled is left to the next owner."""
        self._stopping = True
        self._poll_anew()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._consumer.stop()

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """What is in hand is finished and committed while its partition is still ours."""
        await self._finished()
        await self._commit()

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Reading goes on at the committed offsets."""
        self._poll_anew()

    async def _run(self) -> None:
        committer = self._clock.spawn(self._commit_often(), name=f"{self._topic} offsets")
        try:
            while not self._stopping:
                await self._turn(committer)
            await self._finished()
            await self._commit()
        except Exception as failure:
            if self._fail is None:
                raise
            self._fail(failure)
        finally:
            for task in (committer, *self._in_hand.values()):
                task.cancel()

    async def _turn(self, committer: asyncio.Task[None]) -> None:
        """Hand out what has come of partitions without a batch in hand, or take back batches that are handled."""
        assigned = self._consumer.assignment()
        free = assigned - self._in_hand.keys()
        if free or not assigned:
            self._poll = self._clock.spawn(self._next(free), name=f"{self._topic} is polled")
        watched = {committer, *self._in_hand.values(), *([self._poll] if self._poll else [])}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        fetched = await self._polled()
        if committer.done():
            committer.result()
        for tp in [tp for tp, task in self._in_hand.items() if task.done()]:
            self._in_hand.pop(tp).result()
        for tp, records in fetched.items():
            work = self._one(tp, to_records(records))
            self._in_hand[tp] = self._clock.spawn(work, name=f"{self._topic}[{tp.partition}] is handled")

    async def _next(self, free: Iterable[TopicPartition]) -> dict[TopicPartition, list[Any]]:
        fetched: dict[TopicPartition, list[Any]] = await self._consumer.getmany(
            *free, timeout_ms=POLL_MS, max_records=self._batch
        )
        return fetched

    async def _polled(self) -> dict[TopicPartition, list[Any]]:
        """What the poll has brought; one that still waits is ended: records leave the consumer in one step."""
        poll, self._poll = self._poll, None
        if poll is None:
            return {}
        if not poll.done():
            poll.cancel()
            await asyncio.wait({poll})
        return {} if poll.cancelled() else poll.result()

    def _poll_anew(self) -> None:
        if self._poll is not None:
            self._poll.cancel()

    async def _finished(self) -> None:
        """Return when no batch is in hand; how each ended is looked at by whoever takes it back."""
        if self._in_hand:
            await asyncio.wait(set(self._in_hand.values()))

    async def _one(self, tp: TopicPartition, records: Sequence[Record]) -> None:
        if tp not in self._consumer.assignment():
            return  # revoked since it was fetched: its new owner reads it
        await self._handle(records)
        self._handled[tp] = records[-1].offset + 1

    async def _commit_often(self) -> None:
        while True:
            await self._clock.sleep(COMMIT_SECONDS)
            await self._commit()

    async def _commit(self) -> None:
        """Raises LogFailed when Kafka refuses for good."""
        async with self._committing:
            handled, self._handled = self._handled, {}
            ours = self._consumer.assignment()
            mine = {tp: offset for tp, offset in handled.items() if tp in ours}
            if not mine:
                return
            try:
                await self._consumer.commit(mine)
            except (CommitFailedError, IllegalStateError):
                logger.info("%s has moved: its new owner gets the last batches again", self._topic)
            except KafkaError as error:
                if not error.retriable:
                    raise LogFailed(f"commit_refused: {self._topic} ({type(error).__name__})") from error
                self._handled = {**mine, **self._handled}
