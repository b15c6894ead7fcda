"""Assignments: partitions are taken, served and given up in good order, and a failure of one harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bridge.clock import HostClock
from ports.log import AgentSpec, Fenced, LogFailed, StateLost, TableSpec
from streams.transport.partition.assignment import LEAST_UNSAVED_BYTES, UNSAVED_BYTES, PartitionAssignment
from streams.transport.partition.backend import Recovered, RowLoader
from streams.transport.partition.batch import PartBatch
from streams.transport.partition.checkpoints import Limits
from streams.transport.partition.dead_letters import DeadLetterTopic
from streams.transport.partition.ownership import IsCurrent, Superseded
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import EncodedRows, MemoryStore, MemoryStores, RowStore, Stores
from tests.transport.memory import MemoryBackend, MemoryLog

pytestmark = pytest.mark.timeout(20)
ROWS = TableSpec("rows", lambda row: row, lambda raw: raw)
KEEPER = AgentSpec("keeper", "commands", tables=[ROWS])
WORKER = AgentSpec("worker", "requests")
BOTH = [("keeper", 0), ("keeper", 1), ("worker", 0)]


class FastClock(HostClock):
    """The host's clock with short pauses."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.02))


class Bench:
    """An assignment of two agents on a memory log; `failures` are the errors reported to `fail`."""

    def __init__(
        self, make: Callable[[AgentSpec, int, IsCurrent], MemoryBackend] | None = None, stores: Stores | None = None
    ) -> None:
        self.memory = MemoryLog()
        self.failures: list[BaseException] = []
        self.lost: list[int] = []
        self.recovered: list[int] = []
        self.keeper = AgentSpec(
            "keeper",
            "commands",
            tables=[ROWS],
            on_lost=self.lost.append,
            on_recovered=lambda rows, seconds: self.recovered.append(rows if 0 <= seconds < 5 else -1),
        )
        self.owner = PartitionAssignment(
            [self.keeper, WORKER],
            partitions=2,
            clock=FastClock(),
            new_backend=make or (lambda spec, number, _: self.memory.backend(spec, number)),
            deliver=self.deliver,
            dead_letters=DeadLetterTopic("deadletters", 1),
            cache=RowCache(),
            stores=stores or MemoryStores(),
            fail=self.failures.append,
        )
        self.stuck = False
        self.batches: list[PartBatch] = []

    async def deliver(self, batch: PartBatch) -> None:
        self.batches.append(batch)
        if self.stuck:
            return
        if "keeper" in repr(batch._part):
            for record in batch:
                batch.put("rows", record.key or b"", record.value)
        batch.finish()

    def take_over(self, is_current: IsCurrent = lambda: True, pairs: Sequence[tuple[str, int]] = BOTH) -> None:
        self.owner.take_over(pairs, is_current)


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


async def test_assigned_partitions_are_served_and_given_up_with_a_checkpoint() -> None:
    bench = Bench()
    bench.memory.append("commands", 1, b"a", b"1")
    bench.take_over()
    await until(lambda: bench.owner.settled and bench.owner.views("keeper")[1].position == 1)
    assert bench.owner.assigned == set(BOTH)
    assert set(bench.owner.views("worker")) == {0}
    await bench.owner.give_up(5)
    assert bench.memory.rows["rows", 1] == {b"a": b"1"}
    assert sorted(bench.lost) == [0, 1]
    assert bench.owner.parts == []
    assert bench.owner.assigned == frozenset()


async def test_on_recovered_gets_the_number_of_rows_of_a_taken_partition() -> None:
    bench = Bench()
    for key in (b"a", b"b", b"c"):
        bench.memory.append("commands", 1, key, b"1")
    bench.take_over()
    await until(lambda: bench.owner.settled and bench.owner.views("keeper")[1].position == 3)
    assert bench.recovered == [0, 0]
    await bench.owner.give_up(5)
    bench.take_over()
    await until(lambda: bench.owner.settled)
    assert sorted(bench.recovered[2:]) == [0, 3]
    await bench.owner.give_up(5)


async def test_parts_that_a_new_assignment_keeps_are_served_on() -> None:
    bench = Bench()
    bench.take_over()
    await until(lambda: bench.owner.settled)
    before = bench.owner.views("keeper")
    bench.owner.take_over([("keeper", 1), ("worker", 0)], lambda: True, keep=True, leave_seconds=5)
    await bench.owner.left()
    assert bench.owner.views("keeper") == {1: before[1]}
    assert bench.lost == [0]
    bench.memory.append("commands", 1, b"a", b"1")
    await until(lambda: before[1].position == 1)
    bench.owner.take_over(BOTH, lambda: True, keep=True)
    await until(lambda: bench.owner.settled)
    assert bench.owner.views("keeper")[1] is before[1]
    assert bench.owner.views("keeper")[0] is not before[0]
    await bench.owner.give_up(5)
    assert bench.memory.rows["rows", 1] == {b"a": b"1"}


async def test_an_assignment_that_may_have_gone_to_others_in_between_is_taken_anew() -> None:
    bench = Bench()
    bench.take_over()
    await until(lambda: bench.owner.settled)
    before = bench.owner.views("keeper")[1]
    bench.take_over()
    await until(lambda: bench.owner.settled)
    assert bench.owner.views("keeper")[1] is not before
    await bench.owner.give_up(5)


async def test_a_partition_recovered_between_two_assignments_is_taken_by_the_second() -> None:
    """While the group settles, nobody knows the owner: the recovery stops, and goes on with the new assignment."""
    bench = Bench()
    current = False
    bench.owner.take_over(BOTH, lambda: current)
    await asyncio.sleep(0.05)
    assert bench.owner.parts == []
    current = True
    await until(lambda: bench.owner.settled)
    await bench.owner.give_up(5)


async def test_giving_up_waits_only_some_time_for_a_stuck_agent() -> None:
    bench = Bench()
    bench.stuck = True
    bench.memory.append("commands", 0, b"a", b"1")
    bench.take_over()
    await until(lambda: bench.batches)
    await asyncio.wait_for(bench.owner.give_up(0.05), 5)
    assert bench.memory.positions == {}
    assert bench.batches[0].finished.done(), "the stream skips a batch whose part has gone"


async def test_a_partition_that_is_not_served_does_not_affect_the_others() -> None:
    bench = Bench()
    bench.memory.append("commands", 0, b"a", b"1")
    bench.take_over()
    await until(lambda: bench.owner.settled and bench.owner.views("keeper")[0].position == 1)
    await bench.owner.give_up(5)
    del bench.memory.records["commands", 0][:]
    bench.take_over()
    await until(lambda: bench.owner.settled)
    assert set(bench.owner.views("keeper")) == {1}
    code, text = bench.owner.unserved[0]
    assert code == "position_beyond_log_end"
    assert "keeper" in text and "commands[0]" in text
    await bench.owner.give_up(5)


async def test_a_fenced_partition_is_taken_again_while_it_is_assigned() -> None:
    bench = Bench()
    bench.memory.append("commands", 0, b"a", b"1")
    bench.take_over()
    await until(lambda: bench.owner.settled and bench.owner.views("keeper")[0].position == 1)
    former = bench.owner.views("keeper")[0]
    bench.memory.epochs["commands", 0] += 1
    with pytest.raises(Fenced):
        await next(part for part in bench.owner.parts if part is former).checkpoint()
    bench.memory.append("commands", 0, b"b", b"2")
    await until(lambda: bench.owner.views("keeper").get(0) not in (None, former))
    await until(lambda: bench.owner.views("keeper")[0].position == 2)
    await bench.owner.give_up(5)
    assert bench.memory.rows["rows", 0] == {b"a": b"1", b"b": b"2"}
    assert bench.failures == []


async def test_a_fenced_partition_is_dropped_when_it_is_no_longer_assigned() -> None:
    bench = Bench()
    ours = True
    bench.memory.append("commands", 0, b"a", b"1")
    bench.take_over(lambda: ours)
    await until(lambda: bench.owner.settled and bench.owner.views("keeper")[0].position == 1)
    ours = False
    bench.memory.epochs["commands", 0] += 1
    await until(lambda: 0 not in bench.owner.views("keeper"))
    epoch = bench.memory.epochs["commands", 0]
    await asyncio.sleep(0.1)
    assert bench.memory.epochs["commands", 0] == epoch, "the rightful owner is not fenced again"
    await bench.owner.give_up(5)


async def test_a_failed_checkpoint_gives_up_its_partition_and_takes_it_again() -> None:
    bench = Bench()
    bench.memory.append("commands", 0, b"a", b"1")
    bench.take_over()
    await until(lambda: bench.owner.settled)
    other = bench.owner.views("keeper")[1]
    bench.memory.fail_checkpoint = RuntimeError("coordinator went away")
    former = bench.owner.views("keeper")[0]
    await until(lambda: bench.owner.views("keeper").get(0) is not former)
    bench.memory.fail_checkpoint = None
    await until(lambda: bench.owner.settled)
    assert bench.owner.views("keeper")[1] is other
    await until(lambda: bench.memory.rows["rows", 0] == {b"a": b"1"})
    await bench.owner.give_up(5)
    assert bench.failures == []


async def test_partitions_of_agents_with_tables_share_the_limit_of_unsaved_bytes() -> None:
    """A worker with many partitions holds no more than one with few; very small shares are not worth a transaction."""
    bench = Bench()
    shares = []
    for count in (1, 8, 40):
        pairs = [(name, number) for name in ("keeper", "worker") for number in range(count)]
        bench.owner.take_over(pairs, lambda: True, keep=True)
        await until(lambda: bench.owner.settled)
        shares.append({part._limits for part in bench.owner.parts})
    await bench.owner.give_up(5)
    commands = Limits().commands
    assert [{share.bytes for share in some} for some in shares] == [
        {Limits().bytes},
        {UNSAVED_BYTES // 8},
        {LEAST_UNSAVED_BYTES},
    ]
    assert {share.commands for some in shares for share in some} == {commands}


class Breaking(MemoryStores):
    """The first store of each partition breaks, at its first write or when it is opened."""

    def __init__(self, *, opening: bool) -> None:
        self.broken: set[int] = set()
        self.opening = opening

    async def open(self, agent: str, partition: int, tables: Sequence[str]) -> RowStore:
        if partition in self.broken:
            return await super().open(agent, partition, tables)
        self.broken.add(partition)
        if self.opening:
            raise StateLost("it cannot be opened")
        return Broken({table: {} for table in tables})


class Broken(MemoryStore):
    async def write(self, rows: EncodedRows) -> None:
        raise StateLost("it cannot be written")


@pytest.mark.parametrize("stores", [Breaking(opening=True), Breaking(opening=False)], ids=["opened", "written"])
async def test_a_partition_with_lost_local_rows_is_recovered_from_its_changelog(
    stores: Breaking, caplog: pytest.LogCaptureFixture
) -> None:
    """One log line reports it; the worker continues, and no record is folded twice."""
    bench = Bench(stores=stores)
    for number in range(3):
        bench.memory.append("commands", 0, b"%d" % number, b"row")
    bench.take_over()
    await until(lambda: stores.broken == {0, 1} and bench.owner.settled)
    await until(lambda: bench.owner.views("keeper")[0].position == 3)
    assert dict(bench.owner.views("keeper")[0].rows("rows")) == {b"0": b"row", b"1": b"row", b"2": b"row"}
    await bench.owner.give_up(5)
    assert [record.key for batch in bench.batches for record in batch] == [b"0", b"1", b"2"]
    assert bench.failures == []
    lines = [record for record in caplog.records if "is taken anew from its changelog: state_lost" in record.message]
    assert len(lines) == (2 if stores.opening else 1)


async def test_a_refused_write_fails_the_worker() -> None:
    bench = Bench()
    bench.memory.fail_checkpoint = LogFailed("produce_refused", "record refused")
    bench.memory.append("commands", 0, b"a", b"1")
    bench.take_over()
    await until(lambda: bench.failures)
    assert str(bench.failures[0]) == "produce_refused: record refused"
    await bench.owner.give_up(5)


async def test_a_superseded_take_over_serves_nothing() -> None:
    class Overtaken(MemoryBackend):
        async def take(self, rows: RowLoader) -> Recovered:
            raise Superseded

    bench = Bench(lambda spec, number, _: Overtaken(bench.memory, spec, number))
    bench.take_over()
    await asyncio.sleep(0.05)
    assert bench.owner.parts == []
    assert bench.failures == []


async def test_giving_up_ends_a_running_recovery() -> None:
    closed: list[MemoryBackend] = []

    class Endless(MemoryBackend):
        async def take(self, rows: RowLoader) -> Recovered:
            await asyncio.sleep(60)
            return await super().take(rows)

        async def close(self) -> None:
            closed.append(self)

    bench = Bench(lambda spec, number, _: Endless(bench.memory, spec, number))
    bench.take_over()
    await asyncio.sleep(0.02)
    await asyncio.wait_for(bench.owner.give_up(5), 2)
    assert len(closed) == 3


async def test_the_checkpoint_interval_grows_with_the_partitions_of_agents_with_tables() -> None:
    bench = Bench()
    assert bench.owner.interval() == 0.5
    bench.take_over()
    await until(lambda: bench.owner.settled)
    assert bench.owner.interval() == 0.5
    bench.take_over(pairs=[("keeper", number) for number in range(25)])
    await until(lambda: bench.owner.settled)
    assert bench.owner.interval() == pytest.approx(25 * 0.04)
    await bench.owner.give_up(5)
