"""Followers of a topic on a real Kafka: waiting partitions, commits, and notes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from bridge.clock import HostClock
from ports.log import Committed, Follower, Record, TopicSpec
from streams.transport.kafka.log import KafkaLog
from tests.services import KafkaServer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def log(kafka: KafkaServer) -> AsyncIterator[KafkaLog]:
    log = KafkaLog([kafka.bootstrap], HostClock())
    await log.start()
    yield log
    await log.stop()


@pytest.fixture
async def topic(log: KafkaLog) -> str:
    """Create a topic of two partitions, with one record in each."""
    name = f"follow-{uuid.uuid4().hex[:8]}"
    await log.create([TopicSpec(name, 2, 3_600_000)])
    for partition in range(2):
        await log.append(name, partition, b"k", b"%d" % partition)
    return name


class Reader:
    """Notes its batches, and blocks on chosen ones."""

    def __init__(self, log: KafkaLog, topic: str) -> None:
        self._log = log
        self._topic = topic
        self.begun: list[Record] = []
        self.seen: list[bytes | None] = []
        self.let_go = asyncio.Event()
        self.held_partition: int | None = None
        self.fresh_when_dropped: list[bool] = []

    async def follow(self) -> Follower:
        self.follower = await self._log.follow(f"{self._topic}-group", self._topic, self._handle)
        return self.follower

    async def _handle(self, records: Sequence[Record]) -> None:
        self.begun.extend(records)
        if records[0].partition == self.held_partition:
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.fresh_when_dropped.append(self.follower.fresh)
                raise
        self.seen.extend(record.value for record in records)


async def until(holds: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


async def test_a_waiting_partition_delays_no_other(log: KafkaLog, topic: str) -> None:
    reader = Reader(log, topic)
    reader.held_partition = 0
    follower = await reader.follow()
    await until(lambda: len(reader.begun) == 2)
    for number in range(3):
        await log.append(topic, 1, b"k", b"more %d" % number)
        await until(lambda: len(reader.seen) == number + 2)  # noqa: B023 - called before `number` changes
    assert reader.seen == [b"1", b"more 0", b"more 1", b"more 2"]
    reader.let_go.set()
    await until(lambda: b"0" in reader.seen)
    await follower.stop()


async def test_a_partition_has_one_batch_in_hand(log: KafkaLog, topic: str) -> None:
    reader = Reader(log, topic)
    reader.held_partition = 0
    follower = await reader.follow()
    await until(lambda: len(reader.begun) == 2)
    await log.append(topic, 0, b"k", b"later")
    await log.append(topic, 1, b"k", b"a sign that time has passed")
    await until(lambda: b"a sign that time has passed" in reader.seen)
    assert b"later" not in [record.value for record in reader.begun]
    reader.let_go.set()
    await until(lambda: b"later" in reader.seen)
    await follower.stop()


async def test_a_stop_waits_for_batches_in_hand_and_commits_them(log: KafkaLog, topic: str) -> None:
    first = Reader(log, topic)
    first.held_partition = 0
    follower = await first.follow()
    await until(lambda: len(first.begun) == 2)
    stopping = asyncio.create_task(follower.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    first.let_go.set()
    await stopping
    assert sorted(value or b"" for value in first.seen) == [b"0", b"1"]
    await log.append(topic, 0, b"k", b"next")
    second = Reader(log, topic)
    follower = await second.follow()
    await until(lambda: second.seen)
    await follower.stop()
    assert second.seen == [b"next"]


async def test_an_unhandled_batch_is_delivered_again(log: KafkaLog, topic: str) -> None:
    first = Reader(log, topic)
    first.held_partition = 0
    follower = await first.follow()
    await until(lambda: len(first.begun) == 2)
    stopping = asyncio.create_task(follower.stop())
    await asyncio.sleep(0.1)
    for task in [task for task in asyncio.all_tasks() if task.get_name() == f"{topic}[0] is handled"]:
        task.cancel()
    await stopping
    second = Reader(log, topic)
    follower = await second.follow()
    await until(lambda: second.seen)
    await follower.stop()
    assert second.seen == [b"0"]


async def test_a_second_follower_takes_its_share_and_no_record_is_lost(log: KafkaLog, topic: str) -> None:
    first, second = Reader(log, topic), Reader(log, topic)
    followers = [await first.follow()]
    await until(lambda: len(first.seen) == 2)
    followers.append(await second.follow())
    number = 0
    while not second.begun and number < 200:
        for partition in range(2):
            await log.append(topic, partition, b"k", b"n%d.%d" % (number, partition))
        number += 1
        await asyncio.sleep(0.05)
    await until(lambda: len({*first.seen, *second.seen}) == 2 + 2 * number)
    for follower in followers:
        await follower.stop()
    assert second.begun


async def test_a_note_is_committed_with_its_offset_and_passed_to_the_next_owner(log: KafkaLog, topic: str) -> None:
    """Together with the log end; `taken` is called for each assignment before its first batch."""
    taken_calls: list[Committed] = []
    handled: list[Record] = []

    async def handle(records: Sequence[Record]) -> str:
        assert {one.partition for one in taken_calls} >= {records[0].partition}
        handled.extend(records)
        return f"up to {records[-1].offset}"

    async def taken(committed: Committed) -> None:
        taken_calls.append(committed)

    async def follow_until(count: int) -> None:
        taken_calls.clear()
        follower = await log.follow(f"{topic}-group", topic, handle, taken=taken)
        await until(lambda: follower.fresh and len(handled) == count)
        await follower.stop()

    await follow_until(2)
    assert sorted(taken_calls) == [Committed(0, None, "", 1), Committed(1, None, "", 1)]
    for partition in range(2):
        await log.append(topic, partition, b"k", b"more")
    await follow_until(4)
    assert sorted(taken_calls) == [Committed(0, 1, "up to 0", 2), Committed(1, 1, "up to 0", 2)]


async def test_a_hand_over_does_not_wait_for_an_endless_batch(log: KafkaLog, topic: str) -> None:
    """The batch is left to the next owner and the group continues, as a bridge may wait for its neighbour for hours."""
    first, second = Reader(log, topic), Reader(log, topic)
    first.held_partition = 0
    followers = [await first.follow()]
    await until(lambda: len(first.begun) == 2)
    second.held_partition = 0
    followers.append(await second.follow())
    await until(lambda: sum(r.partition == 0 for r in [*first.begun, *second.begun]) == 2, 20)
    assert first.fresh_when_dropped == [False], "what it has under way is its next owner's from here on"
    await until(lambda: first.follower.fresh and second.follower.fresh)
    first.let_go.set()
    second.let_go.set()
    await until(lambda: {b"0", b"1"} <= {*first.seen, *second.seen})
    for follower in followers:
        await follower.stop()


async def test_a_tail_is_read_until_the_reader_stops(log: KafkaLog, topic: str) -> None:
    seen: list[bytes | None] = []

    async def read() -> None:
        async for records in log.tail(topic, 0, 0):
            seen.extend(record.value for record in records)

    reading = asyncio.create_task(read())
    await until(lambda: seen == [b"0"])
    await log.append(topic, 0, b"k", b"next")
    await until(lambda: seen == [b"0", b"next"])
    reading.cancel()
    await asyncio.wait([reading])
