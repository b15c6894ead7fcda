"""The log in memory keeps the rules of the conformance suite: order, durability, resuming, fencing, records as sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import pytest

from ports.log import LARGEST_RECORD_BYTES, AgentSpec, Fenced, Record, RecordTooLarge, TableSpec
from streams.transport.partition.backend import NewRecord, PositionRow
from tests.crash.log import Broker, CrashBackend, CrashLog
from tests.crash.process import LoopClock
from tests.crash.world import Host, World
from tests.transport.memory import read_back

COUNTS = TableSpec("counts", lambda row: b"%d" % row, int)
FOLD = AgentSpec("fold", "in", tables=[COUNTS])
STEP = AgentSpec("step", "requests")
T = TypeVar("T")
HEADERS = (("n", b""), ("n", bytes(range(256))))


class Place:
    """A world with one broker and short-lived processes."""

    def __init__(self) -> None:
        self.world = World(7)
        self.broker = Broker(self.world, 2)
        self.host = self.process()

    def process(self) -> Host:
        host = Host(self.world)
        self.broker.members["g"] = host
        return host

    def log(self) -> CrashLog:
        return CrashLog(self.broker, self.host, LoopClock(self.world))

    def backend(self, spec: AgentSpec = FOLD, host: Host | None = None) -> CrashBackend:
        return CrashBackend(self.broker, host or self.host, "g", spec, 0, lambda: True)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def whole() -> T:
            return await work()

        task = self.host.loop.create_task(whole())
        while not task.done():
            assert self.world.step(), "it waits for what never comes"
        return task.result()

    def rest(self) -> None:
        while self.world.step():
            pass


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    for host in list(made.world.hosts):
        host.kill()


def test_records_keep_order_headers_and_the_logs_time(place: Place) -> None:
    """Offsets have no gaps, however fast each process sends; timestamps are the log's."""

    async def work() -> Sequence[Record]:
        log, backend = place.log(), place.backend()
        positions = [await log.append("in", 0, b"k", b"%d" % number, HEADERS) for number in range(5)]
        assert [position.offset for position in positions] == list(range(5))
        for number in range(5, 20):
            backend.send("in", 0, [NewRecord(b"k", b"%d" % number, HEADERS)])
        backend.seek(0)
        found: list[Record] = []
        while len(found) < 20:
            found += await backend.fetch(7)
        return found

    found = place.run(work)
    assert [(r.offset, r.value) for r in found] == [(n, b"%d" % n) for n in range(20)]
    assert {tuple(r.headers) for r in found} == {HEADERS}
    assert {r.timestamp for r in found} == {place.world.log_time()}


def test_a_record_that_is_too_large_is_refused_before_it_is_sent(place: Place) -> None:
    async def work() -> None:
        with pytest.raises(RecordTooLarge):
            await place.log().append("in", 0, b"k", b"x" * LARGEST_RECORD_BYTES)

    place.run(work)
    assert place.broker.end("in", 0) == 0


def test_acknowledged_records_outlive_the_process_and_buffered_ones_do_not(place: Place) -> None:
    async def work() -> None:
        backend = place.backend()
        (ack,) = backend.send("out", 0, [NewRecord(None, b"acknowledged")])
        await ack
        backend.send("out", 0, [NewRecord(None, b"in the buffer")])

    place.run(work)
    place.host.kill()
    place.rest()
    assert [record.value for record in place.broker.records["out", 0]] == [b"acknowledged"]


def test_rows_and_position_are_written_together_and_read_back(place: Place) -> None:
    position = PositionRow(3, 2, 0, 0)

    async def write() -> None:
        backend = place.backend()
        await read_back(backend, "counts")
        await backend.checkpoint({"counts": {b"a": b"1", b"b": b"2"}}, PositionRow(2, 2, 0, 0))
        await backend.checkpoint({"counts": {b"a": None}}, position)

    place.run(write)
    place.host.kill()
    place.host = place.process()
    rows, found = place.run(lambda: read_back(place.backend(), "counts"))
    assert (rows, found.position) == ({"counts": {b"b": b"2"}}, position)


def test_a_checkpoint_under_way_when_its_process_dies_is_complete_or_missing(place: Place) -> None:
    async def begin() -> None:
        backend = place.backend()
        await read_back(backend, "counts")
        place.host.loop.create_task(backend.checkpoint({"counts": {b"a": b"1"}}, PositionRow(1, 2, 0, 0)))
        await asyncio.sleep(0)

    place.run(begin)
    place.host.kill()
    place.rest()
    assert (dict(place.broker.rows["counts", 0]), place.broker.positions) == ({}, {})


def test_a_process_that_was_overtaken_is_fenced(place: Place) -> None:
    """Its checkpoint fails for good, and its offsets are ignored."""
    old_host, old, steps = place.host, place.backend(), place.backend(STEP)
    place.run(lambda: read_back(old, "counts"))
    place.host = place.process()
    new = place.backend()
    place.run(lambda: read_back(new, "counts"))

    async def late() -> None:
        with pytest.raises(Fenced):
            await old.checkpoint({"counts": {b"a": b"1"}}, PositionRow(1, 2, 0, 0))
        steps.commit(9)
        await steps.close()

    place.host = old_host
    place.run(late)
    assert not place.broker.rows["counts", 0]
    assert not place.broker.committed


def test_a_step_agent_and_a_follower_resume_where_they_committed(place: Place) -> None:
    seen: list[bytes | None] = []

    async def handle(records: Sequence[Record]) -> None:
        seen.extend(record.value for record in records)

    async def first() -> None:
        log, backend = place.log(), place.backend(STEP)
        for number in range(4):
            await log.append("requests", 0, None, b"%d" % number)
        backend.commit(3)
        await backend.close()
        follower = await log.follow("f", "requests", handle, batch=3)
        await asyncio.sleep(2)
        await follower.stop()

    async def second() -> int | None:
        log = place.log()
        await log.append("requests", 0, None, b"4")
        follower = await log.follow("f", "requests", handle)
        await asyncio.sleep(2)
        await follower.stop()
        return (await read_back(place.backend(STEP)))[1].committed

    place.run(first)
    place.rest()
    place.host.kill()
    place.host = place.process()
    assert place.run(second) == 3
    assert seen == [b"0", b"1", b"2", b"3", b"4"]


def test_a_batch_whose_handling_was_interrupted_is_delivered_again(place: Place) -> None:
    seen: list[bytes | None] = []

    async def never(_: Sequence[Record]) -> None:
        await asyncio.Event().wait()

    async def handle(records: Sequence[Record]) -> None:
        seen.extend(record.value for record in records)

    async def first() -> None:
        await place.log().append("requests", 1, None, b"x")
        await place.log().follow("f", "requests", never)
        await asyncio.sleep(2)

    async def second() -> None:
        await place.log().follow("f", "requests", handle)
        await asyncio.sleep(2)

    place.run(first)
    place.host.kill()
    place.host = place.process()
    place.run(second)
    assert seen == [b"x"]


def test_a_cancelled_fetch_loses_nothing(place: Place) -> None:
    async def work() -> Sequence[Record]:
        backend = place.backend()
        waiting = place.host.loop.create_task(backend.fetch(1))
        await asyncio.sleep(1)
        waiting.cancel()
        await place.log().append("in", 0, None, b"x")
        return await backend.fetch(1)

    assert [record.value for record in place.run(work)] == [b"x"]
