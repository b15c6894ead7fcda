"""Ownerships: whatever a take has opened is closed on every way out, and one partition is never open twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bridge.clock import HostClock
from ports.log import AgentSpec, Record, TableSpec
from streams.transport.partition.assignment import PartitionAssignment
from streams.transport.partition.backend import Recovered, RowLoader
from streams.transport.partition.batch import PartBatch
from streams.transport.partition.dead_letters import DeadLetterTopic
from streams.transport.partition.ownership import IsCurrent, Superseded
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStore, MemoryStores, RowStore
from tests.transport.memory import MemoryBackend, MemoryLog

pytestmark = pytest.mark.timeout(30)
ROWS = TableSpec("rows", lambda row: row, lambda raw: raw)
PAIR = ("keeper", 0)


class FastClock(HostClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


class Opened(MemoryBackend):
    """A backend whose every step takes some turns of the event loop."""

    def __init__(self, bench: Bench, spec: AgentSpec, number: int) -> None:
        super().__init__(bench.memory, spec, number)
        self.bench = bench
        bench.opened.append(self)

    async def take(self, rows: RowLoader) -> Recovered:
        assert all(one.closed for one in self.bench.opened if one is not self), "one partition is open once"
        await turns(2)
        if self.bench.take_error is not None:
            raise self.bench.take_error
        return await super().take(rows)

    async def close(self) -> None:
        self.bench.closing += 1
        await turns(2)
        await self.bench.may_close.wait()
        await super().close()


class Stores(MemoryStores):
    def __init__(self) -> None:
        self.open_now = 0

    async def open(self, agent: str, partition: int, tables: Sequence[str]) -> RowStore:
        await turns(2)
        self.open_now += 1
        return Store(self)


class Store(MemoryStore):
    def __init__(self, stores: Stores) -> None:
        super().__init__({"rows": {}})
        self.stores = stores
        self.closed = False

    def close(self) -> None:
        super().close()
        self.stores.open_now -= not self.closed
        self.closed = True


class Bench:
    """The assignment of one partition."""

    def __init__(self) -> None:
        self.memory = MemoryLog()
        self.memory.append("commands", 0, b"a", b"1")
        self.opened: list[Opened] = []
        self.closing = 0
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.take_error: BaseException | None = None
        self.stores = Stores()
        self.lost: list[int] = []
        self.owner = PartitionAssignment(
            [AgentSpec("keeper", "commands", tables=[ROWS], on_lost=self.lost.append)],
            partitions=1,
            clock=FastClock(),
            new_backend=lambda spec, number, _: Opened(self, spec, number),
            deliver=self._deliver,
            dead_letters=DeadLetterTopic("deadletters", 1),
            cache=RowCache(),
            stores=self.stores,
            fail=lambda failure: pytest.fail(repr(failure)),
        )

    async def _deliver(self, batch: PartBatch) -> None:
        for record in batch:
            batch.put("rows", record.key or b"", record.value)
        batch.finish()

    def take_over(self, is_current: IsCurrent = lambda: True, *, keep: bool = False) -> None:
        self.owner.take_over([PAIR], is_current, keep=keep)

    async def served(self) -> None:
        async with asyncio.timeout(5):
            while not self.owner.settled or self.owner.views("keeper")[0].position < len(self._log):
                await asyncio.sleep(0.001)

    @property
    def _log(self) -> list[Record]:
        return self.memory.records["commands", 0]

    def nothing_is_open(self) -> bool:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        return all(one.closed for one in self.opened) and self.stores.open_now == 0 and not tasks


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seconds", [0.0, 5.0])
async def test_a_partition_given_up_at_any_moment_leaves_nothing_open(seconds: float) -> None:
    seen = set()
    for moment in range(60):
        bench = Bench()
        bench.take_over()
        await turns(moment)
        seen.add((len(bench.opened), bool(bench.owner.parts)))
        await bench.owner.give_up(seconds)
        await turns(2)
        assert bench.nothing_is_open(), f"given up after {moment} turns"
        assert bench.owner.claimed == frozenset()
    assert seen == {(0, False), (1, False), (1, True)}, "before, during and after the take"


async def test_a_partition_that_moves_while_it_closes_is_closed_all_the_same() -> None:
    """A take that was superseded is closing when the next assignment lacks its partition."""
    bench = Bench()
    bench.take_error = Superseded()
    bench.may_close.clear()
    bench.take_over()
    await turns(20)
    assert bench.closing == 1
    bench.owner.take_over([], lambda: True, keep=True)
    await turns(20)
    assert bench.owner.claimed == {PAIR}, "nobody else may have it yet"
    bench.may_close.set()
    await bench.owner.left()
    await turns(2)
    assert bench.nothing_is_open()


async def test_a_stop_while_a_partition_closes_waits_for_it() -> None:
    bench = Bench()
    bench.take_error = Superseded()
    bench.may_close.clear()
    bench.take_over()
    await turns(20)
    stopping = asyncio.create_task(bench.owner.give_up(0.0))
    await asyncio.sleep(0.02)
    assert not stopping.done()
    bench.may_close.set()
    await stopping
    await turns(2)
    assert bench.nothing_is_open()


async def test_a_partition_is_taken_again_only_after_it_was_closed() -> None:
    bench = Bench()
    bench.take_over()
    await bench.served()
    bench.may_close.clear()
    for _ in range(3):
        bench.take_over()  # others may have had it in between, three times
        await turns(5)
    await asyncio.sleep(0.02)
    assert len(bench.opened) == 1
    bench.may_close.set()
    await bench.served()
    assert [one.closed for one in bench.opened] == [True, False]
    await bench.owner.give_up(5)
    assert bench.memory.rows["rows", 0] == {b"a": b"1"}


async def test_a_partition_that_is_given_up_and_assigned_again_is_claimed_throughout() -> None:
    bench = Bench()
    bench.take_over()
    await bench.served()
    bench.may_close.clear()
    bench.owner.take_over([], lambda: True, keep=True, leave_seconds=5)
    bench.take_over(keep=True)
    bench.owner.take_over([], lambda: True, keep=True, leave_seconds=5)
    await turns(20)
    assert bench.owner.claimed == {PAIR}
    bench.may_close.set()
    await bench.owner.left()
    assert bench.owner.claimed == frozenset()
    assert bench.nothing_is_open()


async def test_an_assignment_that_is_not_current_any_more_begins_nothing() -> None:
    """It was overtaken by a stop, or by the news that the group has replaced this member."""
    bench = Bench()
    bench.take_over(lambda: False)
    await turns(5)
    assert bench.opened == []
    assert bench.nothing_is_open()


async def test_a_take_over_ends_when_all_is_given_up_meanwhile() -> None:
    bench = Bench()
    current = True
    bench.take_over(lambda: current)
    await turns(4)
    current = False
    bench.owner.let_go(0.0)
    assert bench.owner.assigned == frozenset()
    await bench.owner.left()
    await turns(2)
    assert bench.nothing_is_open()


async def test_a_take_that_another_cancels_is_repeated() -> None:
    """For example by a library that cancels a future: the partition must not stay unserved silently."""
    bench = Bench()
    bench.take_error = asyncio.CancelledError()
    bench.take_over()
    await turns(20)
    bench.take_error = None
    await bench.served()
    await bench.owner.give_up(5)
    assert len(bench.opened) > 1


async def test_a_backend_that_fails_to_close_leaves_no_rows_and_no_view() -> None:
    bench = Bench()
    bench.take_over()
    await bench.served()

    async def close() -> None:
        raise OSError("cannot be closed")

    bench.opened[0].close = close  # type: ignore[method-assign]
    await bench.owner.give_up(5)
    assert bench.stores.open_now == 0
    assert bench.lost == [0]
    assert bench.owner.parts == []
