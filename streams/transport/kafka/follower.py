"""Follows a topic on Kafka in a consumer group of its own, for the bridges."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from ports.clock import Clock
from ports.log import Committed, Handle, LogFailed, Record, Taken
from streams.transport.kafka.client import DRAIN_SECONDS, FETCH_BYTES, FETCH_WAIT_MS, fetch_cheaply
from streams.transport.kafka.session import SESSION_SECONDS, GroupSession
from streams.transport.kafka.wire import give_records

logger = logging.getLogger(__name__)

# Interval of commits; a commit after every batch would cost the broker more than the batch.
COMMIT_SECONDS = 0.5
POLL_MS = 1000
# Time a hand-over waits for batches in hand; the whole group waits as long.
GIVE_UP_SECONDS = 3.0
REBALANCE_MS = 15_000
AGAIN_SECONDS = 0.2


class GroupFollower(ConsumerRebalanceListener):  # type: ignore[misc]
    """Implements `Follower`: one batch in hand per partition, committed after `handle` returned.

    A partition whose batch waits delays no other.
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
        taken: Taken | None = None,
    ) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=list(servers),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            session_timeout_ms=int(SESSION_SECONDS * 1000),
            rebalance_timeout_ms=REBALANCE_MS,
            heartbeat_interval_ms=1_000,
            max_poll_interval_ms=600_000,
            partition_assignment_strategy=[RangePartitionAssignor],
        )
        self._topic = topic
        self._handle = handle
        self._batch = batch
        self._clock = clock
        self._fail = fail
        self._taken = taken
        self._unannounced: set[TopicPartition] = set()
        """Assigned partitions for which `taken` was not called yet."""
        self._session: GroupSession | None = None
        self._epoch = 0
        """Incremented when partitions move: records fetched before are fetched again by their owner."""
        self._moving = False
        self._left_behind = False
        """True from dropping batches to the next assignment: their remaining work belongs to another owner."""
        self._dropped: set[asyncio.Task[None]] = set()
        """Batches still in hand when their partition was revoked."""
        self._in_hand: dict[TopicPartition, asyncio.Task[None]] = {}
        self._first_in_hand: dict[TopicPartition, int] = {}
        """Offset of the first record of each batch in hand."""
        self._sought: dict[TopicPartition, int] = {}
        """Offsets at which partitions are to be continued."""
        self._handled: dict[TopicPartition, OffsetAndMetadata] = {}
        """Offsets to commit, with the handler's notes."""
        self._committing = asyncio.Lock()
        self._stopping = False
        self._poll: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._consumer.start()
        give_records(self._consumer, DRAIN_SECONDS)
        fetch_cheaply(self._consumer)
        self._session = GroupSession(self._consumer, self._clock)
        self._consumer.subscribe([self._topic], listener=self)
        self._task = self._clock.spawn(self._run(), name=f"{self._topic} is followed")

    @property
    def fresh(self) -> bool:
        return not self._left_behind and self._session is not None and self._session.fresh

    @property
    def places(self) -> Mapping[int, int]:
        places = {}
        for tp in self._consumer.assignment():
            if (first := self._first_in_hand.get(tp, self._sought.get(tp))) is not None:
                places[tp.partition] = first
            elif (position := _position(self._consumer, tp)) is not None:
                places[tp.partition] = position
        return places

    def seek(self, partition: int, offset: int) -> None:
        self._sought[TopicPartition(self._topic, partition)] = offset
        self._poll_anew()

    async def stop(self) -> None:
        """Finish the batches in hand and commit. A cancelled batch is left to the next owner."""
        self._stopping = True
        self._poll_anew()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._consumer.stop()

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Finish and commit the batches in hand within GIVE_UP_SECONDS, while their partitions are still owned."""
        self._moving = True
        self._epoch += 1
        try:
            async with self._clock.timeout(GIVE_UP_SECONDS):
                await self._finished()
        except TimeoutError:
            await self._drop()
        await self._commit()
        self._handled.clear()

    async def _drop(self) -> None:
        """Cancel the batches in hand; the next owner gets them."""
        late = {task for task in self._in_hand.values() if not task.done()}
        self._left_behind = True
        logger.warning("%s: %d batches in hand are left to their next owner", self._topic, len(late))
        self._dropped |= late
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Continue at the committed offsets."""
        self._unannounced = set(assigned)
        self._sought.clear()
        self._moving = self._left_behind = False
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
        """Start handling records of partitions without a batch in hand, or finish handled batches."""
        epoch = self._epoch
        assigned = self._consumer.assignment()
        free = assigned - self._in_hand.keys()
        for tp in free & self._sought.keys():
            self._consumer.seek(tp, self._sought.pop(tp))
        if free or not assigned:
            self._poll = self._clock.spawn(self._next(free), name=f"{self._topic} is polled")
        watched = {committer, *self._in_hand.values(), *([self._poll] if self._poll else [])}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        fetched = await self._polled()
        if committer.done():
            committer.result()
        for tp in [tp for tp, task in self._in_hand.items() if task.done()]:
            self._first_in_hand.pop(tp, None)
            self._take_back(self._in_hand.pop(tp))
        if self._moving or epoch != self._epoch:
            return
        for tp, records in fetched.items():
            if tp in self._sought:
                continue  # fetched before the seek
            self._first_in_hand[tp] = records[0].offset
            work = self._one(tp, records)
            self._in_hand[tp] = self._clock.spawn(work, name=f"{self._topic}[{tp.partition}] is handled")

    def _take_back(self, task: asyncio.Task[None]) -> None:
        if task in self._dropped:
            self._dropped.discard(task)
            if task.cancelled():
                return
        task.result()

    async def _next(self, free: Iterable[TopicPartition]) -> dict[TopicPartition, list[Record]]:
        fetched: dict[TopicPartition, list[Record]] = await self._consumer.getmany(
            *free, timeout_ms=POLL_MS, max_records=self._batch
        )
        return fetched

    async def _polled(self) -> dict[TopicPartition, list[Record]]:
        """Return the result of the poll. Cancelling a waiting poll loses nothing, as records leave it in one step."""
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
        """Return when no batch is in hand; its result is checked when it is taken back."""
        if self._in_hand:
            await asyncio.wait(set(self._in_hand.values()))

    async def _one(self, tp: TopicPartition, records: Sequence[Record]) -> None:
        if self._moving or tp not in self._consumer.assignment():
            return  # revoked since it was fetched: the new owner reads it
        if tp in self._unannounced:
            await self._announce(tp)
        note = await self._handle(records)
        self._handled[tp] = OffsetAndMetadata(records[-1].offset + 1, note or "")

    async def _announce(self, tp: TopicPartition) -> None:
        """Call `taken` with the group's committed offset, before the first batch of this assignment."""
        self._unannounced.discard(tp)
        if self._taken is None:
            return
        while (committed := await self._committed(tp)) is None:
            await self._clock.sleep(AGAIN_SECONDS)
        await self._taken(committed)

    async def _committed(self, tp: TopicPartition) -> Committed | None:
        """Return the committed offset and note; None while Kafka does not answer."""
        try:
            known = (await self._consumer._coordinator.fetch_committed_offsets([tp])).get(tp)
            starts = await self._consumer.beginning_offsets([tp])
            ends = await self._consumer.end_offsets([tp])
        except KafkaError as error:
            logger.info("%s[%d]: committed offset not known yet (%s)", self._topic, tp.partition, error)
            return None
        if known is None or not starts[tp] <= known.offset <= ends[tp]:  # committed for another topic of this name
            return Committed(tp.partition, None, "", ends[tp])
        return Committed(tp.partition, known.offset, known.metadata, ends[tp])

    async def _commit_often(self) -> None:
        while True:
            await self._clock.sleep(COMMIT_SECONDS)
            await self._commit()

    async def _commit(self) -> None:
        """Commit handled offsets of owned partitions. Raises LogFailed when Kafka refuses for good."""
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
                    raise LogFailed("commit_refused", f"{self._topic} ({type(error).__name__})") from error
                self._handled = {**mine, **self._handled}


def _position(consumer: AIOKafkaConsumer, tp: TopicPartition) -> int | None:
    """Return the offset of the next record that a poll returns, if the consumer knows it: it never waits for it."""
    assignment = consumer._subscription.subscription.assignment
    state = assignment.state_value(tp) if assignment is not None else None
    return state.position if state is not None and state.has_valid_position else None
