"""A part killed at each of its awaits ends with the same rows, position and set of effects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bridge.clock import HostClock
from ports.log import AgentSpec, LogFailed, TableSpec
from streams.transport.partition.backend import NewRecord, PositionRow
from streams.transport.partition.batch import PartBatch
from streams.transport.partition.checkpoints import Limits
from streams.transport.partition.dead_letters import DeadLetterTopic
from streams.transport.partition.part import Part
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStores
from tests.transport.memory import MemoryBackend, MemoryLog

pytestmark = pytest.mark.timeout(120)
COUNTS = TableSpec("counts", lambda row: b"%d" % row, int)
SPEC = AgentSpec("counter", "commands", tables=[COUNTS], batch=4)
KEYS = [b"a", b"b", b"a", b"c", b"poison", b"b", b"a", b"a", b"c", b"b", b"d", b"a"]


class Fuse:
    """Counts the steps of all tasks of a life. When it is used up, the process is dead and writes nothing any more.

    The remaining tasks are then cancelled to clean up; that is no part of the crash.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.blown = asyncio.Event()

    def step(self) -> bool:
        self.steps -= 1
        if self.steps < 0:
            self.blown.set()
        return not self.blown.is_set()


class Stepped:
    """Drives a coroutine, and checks the fuse before each of its steps."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], fuse: Fuse) -> None:
        self._coroutine = coroutine
        self._fuse = fuse

    def __await__(self) -> Any:
        answer: Any = None
        raised: BaseException | None = None
        unwinding = False
        while True:
            if not self._fuse.step() and not unwinding:
                unwinding, raised = True, asyncio.CancelledError()
            try:
                waiting = self._coroutine.send(answer) if raised is None else self._coroutine.throw(raised)
            except StopIteration as end:
                return end.value
            raised = None
            try:
                answer = yield waiting
            except BaseException as error:  # noqa: BLE001 - a cancellation goes on into the coroutine
                raised = error


class FusedClock(HostClock):
    """Starts tasks on the fuse; a sleep is one turn of the event loop."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse
        self.tasks: list[asyncio.Task[Any]] = []

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        async def burn() -> Any:
            return await Stepped(coroutine, self.fuse)

        task = asyncio.create_task(burn(), name=name)
        self.tasks.append(task)
        return task


class FusedBackend(MemoryBackend):
    """Drops every send, write and commit of a dead process."""

    def __init__(self, log: MemoryLog, spec: AgentSpec, fuse: Fuse) -> None:
        super().__init__(log, spec, 0)
        self.fuse = fuse

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> Sequence[asyncio.Future[Any]]:
        return [] if self.fuse.blown.is_set() else super().send(topic, partition, records)

    async def checkpoint(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        await asyncio.sleep(0)
        if not self.fuse.blown.is_set():
            self.write(rows, position)

    async def close(self) -> None:
        if not self.fuse.blown.is_set():
            await super().close()


async def count(batch: PartBatch) -> None:
    """The agent: counts records by key, and raises for poison."""
    for record in batch:
        await asyncio.sleep(0)
        key = record.key or b""
        number = (batch.get("counts", key) or 0) + 1
        if key == b"poison":
            batch.finish(ValueError("poison"))
        batch.put("counts", key, number)
        batch.send("answers", key, b"%d" % number)
    batch.finish()


async def live(log: MemoryLog, steps: int, fold: int = 0) -> bool:
    """Run one life of a process; return whether it folded everything and stopped before it was killed."""
    fuse, spec = Fuse(steps), replace(SPEC, fold=fold)
    clock = FusedClock(fuse)

    async def deliver(batch: PartBatch) -> None:
        clock.spawn(count(batch), name="agent")

    part = Part(
        spec,
        0,
        partitions=1,
        backend=FusedBackend(log, spec, fuse),
        clock=clock,
        deliver=deliver,
        dead_letters=DeadLetterTopic("deadletters", 1),
        cache=RowCache(),
        stores=MemoryStores(),
        interval=lambda: 0.0005,
        limits=Limits(commands=6),
    )

    async def process() -> None:
        await part.take()
        running = clock.spawn(part.run(), name="run")
        while part.position < len(KEYS):
            await asyncio.sleep(0)
        part.stop()
        await running
        await part.close()

    main = clock.spawn(process(), name="process")
    blown = asyncio.create_task(fuse.blown.wait())
    await asyncio.wait({main, blown}, return_when=asyncio.FIRST_COMPLETED)
    blown.cancel()
    finished = not fuse.blown.is_set()
    if finished:
        main.result()
    await unwound(clock)
    return finished


async def unwound(clock: FusedClock) -> None:
    """End every task of a life, also those started while others end."""
    clock.fuse.blown.set()
    while left := [task for task in clock.tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
    for task in clock.tasks:
        if not task.cancelled():
            task.exception()


def outcome(log: MemoryLog) -> tuple[Any, ...]:
    return (
        log.rows["counts", 0],
        log.positions["commands", 0].next,
        {(record.key, record.value) for record in log.records["answers", 0]},
        {(record.key, dict(record.headers)["origin"]) for record in log.records["deadletters", 0]},
    )


def loaded() -> MemoryLog:
    log = MemoryLog()
    for key in KEYS:
        log.append("commands", 0, key, b"x")
    return log


async def test_a_kill_at_any_await_loses_nothing() -> None:
    whole = loaded()
    assert await live(whole, 1_000_000)
    wanted = outcome(whole)
    assert wanted[0] == {b"a": b"5", b"b": b"3", b"c": b"2", b"d": b"1"}
    points = 0
    while True:
        log = loaded()
        if await live(log, points):
            break
        assert await live(log, 1_000_000)
        assert outcome(log) == wanted, f"killed at step {points}"
        points += 1
    assert points > 60, "the run has fewer awaits than it should: the fuse does not burn"


@pytest.mark.parametrize("every", [3, 7, 13, 29, 31, 37, 41, 43, 53, 61])
async def test_many_kills_in_a_row_lose_nothing(every: int) -> None:
    """Very short lives do no harm; a last long one reaches the same end."""
    log = loaded()
    for _ in range(8):
        await live(log, every)
    assert await live(log, 1_000_000)
    whole = loaded()
    assert await live(whole, 1_000_000)
    assert outcome(log) == outcome(whole)


async def half_folded() -> MemoryLog:
    """The log after a process of fold 0 that was killed behind a checkpoint in the middle."""
    for steps in range(1, 1_000):
        log = loaded()
        assert not await live(log, steps)
        if ("commands", 0) in log.positions:
            assert 0 < log.positions["commands", 0].next < len(KEYS)
            return log
    raise AssertionError("no checkpoint in the middle")


async def test_a_kill_at_any_await_of_an_upgrade_loses_nothing_and_lets_no_older_fold_back() -> None:
    """What a newer fold has sent is never folded again by an older one: it has claimed the partition before."""
    # specification 24.5
    whole = loaded()
    assert await live(whole, 1_000_000)
    points = refusals = 0
    while True:
        log = await half_folded()
        sent = len(log.records["answers", 0])
        ended = await live(log, points, fold=1)
        if log.positions["commands", 0].fold == 1:
            refusals += 1
            with pytest.raises(LogFailed, match="fold_too_new"):
                await live(log, 1_000_000)
        else:
            assert len(log.records["answers", 0]) == sent
        if ended:
            break
        assert await live(log, 1_000_000, fold=1)
        assert outcome(log) == outcome(whole), f"killed at step {points}"
        points += 1
    assert 0 < refusals < points
