"""Timers fire by the log's clock, never too early, and again while the row still has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from ports.log import Header, LogUnavailable
from streams.log_clock import LogClock
from streams.timers import AGAIN_MS, LEARN_SECONDS, TIMERS_PER_TURN, PartitionTimers, Timers, due_timers
from streams.topics import CEREMONIES
from tables.commands import Noop, TimerFired, decode_command
from tables.instance import CeremonyStatus, Instance, Timer
from tests.streams.fakes import HandClock, MemoryView, settle

START = 1_700_000_000_000


def row(name: str = "c1", **timers: int) -> Instance:
    """A row with timers, each with its due time in milliseconds after START; `__` in a name stands for its slash."""
    return Instance(
        instance_id=f"{name}:s1",
        ceremony_id=name,
        story_id="s1",
        definition_name="d",
        definition_hash="h",
        correlation_id=f"corr-{name}",
        requested_by="anna",
        start_digest="x",
        state="RUN",
        status=CeremonyStatus.RUNNING,
        created_at=START,
        updated_at=START,
        timers={timer.replace("__", "/"): Timer(START + due, 3) for timer, due in timers.items()},
    )


class Owner:
    """Timers with a record of their appends; the log's time is that of the hand clock."""

    def __init__(self, *, grace: float = 0.0) -> None:
        self.clock = HandClock()
        self.log_clock = LogClock(self.clock)
        self.fired: list[tuple[int, TimerFired]] = []
        self.headers: list[Sequence[Header]] = []
        self.noops = 0
        self.down = False
        self.timers = Timers(self.clock, self.log_clock, self.send, grace_seconds=grace)

    async def send(self, number: int, key: bytes, value: bytes, headers: Sequence[Header]) -> int:
        if self.down:
            raise LogUnavailable("log_unavailable", "down")
        command = decode_command(value)
        if isinstance(command, Noop):
            self.noops += 1
        else:
            assert isinstance(command, TimerFired)
            assert key == command.instance_id.encode()
            self.fired.append((number, command))
            self.headers.append(headers)
        return self.now()

    def now(self) -> int:
        return START + int((self.clock.seconds - 100) * 1000)

    def names(self) -> list[str]:
        return [command.timer_id for _, command in self.fired]


@contextlib.asynccontextmanager
async def running(owner: Owner) -> AsyncIterator[None]:
    task = asyncio.create_task(owner.timers.run())
    try:
        await settle()
        yield
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# -- the heap of one partition


def heap(*rows: Instance) -> tuple[MemoryView, PartitionTimers]:
    view = MemoryView()
    for one in rows:
        view.put(one)
    timers = PartitionTimers(view)
    assert not list(timers.fill()), "so few need no pause"
    return view, timers


def test_the_heap_is_rebuilt_from_the_rows() -> None:
    _, timers = heap(row("c1", retry__a=300), row("c2", retry__a=100), row("c3"))
    assert timers.next == START + 100


def test_no_timer_is_taken_before_it_is_due() -> None:
    _, timers = heap(row(retry__a=100))
    assert timers.take_due(START + 99, steps_too=True) == []
    (due,) = timers.take_due(START + 100, steps_too=True)
    assert (due.key, due.timer_id, due.attempt, due.correlation_id) == (b"c1:s1", "retry/a", 3, "corr-c1")


def test_all_due_timers_of_a_row_are_taken_at_once_and_the_others_wait() -> None:
    _, timers = heap(row(retry__a=100, ask__b=100, gate__c=101))
    assert {due.timer_id for due in timers.take_due(START + 100, steps_too=True)} == {"retry/a", "ask/b"}


def test_a_timer_still_in_its_row_is_taken_again_after_a_second() -> None:
    """A TimerFired may be lost or come too early, so an entry stays in the heap while its row has the timer."""
    _, timers = heap(row(retry__a=100))
    assert len(timers.take_due(START + 100, steps_too=True)) == 1
    assert timers.take_due(START + 100 + AGAIN_MS - 1, steps_too=True) == []
    assert len(timers.take_due(START + 100 + AGAIN_MS, steps_too=True)) == 1


def test_a_timer_that_its_row_no_longer_has_is_dropped() -> None:
    view, timers = heap(row(retry__a=100))
    view.put(row())
    assert timers.take_due(START + 1000, steps_too=True) == []
    assert timers.next is None


def test_the_timers_of_a_deleted_row_are_dropped() -> None:
    view, timers = heap(row(retry__a=100))
    view.tables[CEREMONIES].clear()
    assert timers.take_due(START + 1000, steps_too=True) == []
    assert timers.next is None


def test_a_postponed_deadline_is_corrected_when_the_old_one_comes_up() -> None:
    view, timers = heap(row(retry__a=100))
    later = row(retry__a=900)
    view.put(later)
    timers.changed(b"c1:s1", later)
    assert timers.take_due(START + 100, steps_too=True) == []
    assert timers.next == START + 900


def test_an_earlier_deadline_replaces_the_old_one() -> None:
    view, timers = heap(row(retry__a=900))
    sooner = row(retry__a=100)
    view.put(sooner)
    timers.changed(b"c1:s1", sooner)
    assert len(timers.take_due(START + 100, steps_too=True)) == 1
    assert len(timers.take_due(START + 900, steps_too=True)) == 0, "the former entry counts no more"


def test_the_timers_taken_at_once_are_bounded() -> None:
    _, timers = heap(*(row(f"c{n}", retry__a=0) for n in range(TIMERS_PER_TURN + 10)))
    assert len(timers.take_due(START, steps_too=True)) == TIMERS_PER_TURN
    assert len(timers.take_due(START, steps_too=True)) == 10


def test_only_ceremony_max_fires_in_a_paused_ceremony() -> None:
    """Its step and gate timers hold a remaining duration, not a time; `ceremony_max` continues."""
    paused = replace(row(retry__a=-START + 5, ceremony_max=100), status=CeremonyStatus.PAUSED)
    assert list(due_timers(paused, START + 100, steps_too=True)) == [("ceremony_max", 3)]
    _, timers = heap(paused)
    assert timers.next == START + 100


def test_step_timeouts_are_only_taken_when_allowed() -> None:
    _, timers = heap(row(timeout__a=100, retry__b=100))
    assert [due.timer_id for due in timers.take_due(START + 100, steps_too=False)] == ["retry/b"]
    later = timers.take_due(START + 100 + AGAIN_MS, steps_too=True)
    assert {due.timer_id for due in later} == {"retry/b", "timeout/a"}


# -- all partitions of an owner


async def test_no_timer_is_due_before_the_logs_clock_is_known() -> None:
    """A no-op command sets it, once a partition is owned."""
    owner = Owner()
    async with running(owner):
        assert owner.noops == 0
        view = MemoryView()
        view.put(row(retry__a=-1000))
        await owner.timers.taken(view)
        await settle()
        assert owner.noops == 1
        assert owner.names() == ["retry/a"]


async def test_the_logs_clock_is_refreshed_each_minute() -> None:
    owner = Owner()
    await owner.timers.taken(MemoryView())
    async with running(owner):
        for _ in range(3 * (LEARN_SECONDS + 1)):
            await owner.clock.advance(1)
        assert owner.noops in (3, 4)


async def test_a_timer_fires_when_it_is_due_and_with_the_ceremonys_correlation_id() -> None:
    owner = Owner()
    view = MemoryView(2)
    view.put(row(retry__a=1500))
    await owner.timers.taken(view)
    async with running(owner):
        await owner.clock.advance(1.4)
        assert owner.fired == []
        await owner.clock.advance(0.2)
    ((number, command),) = owner.fired
    assert (number, command.timer_id, command.attempt) == (2, "retry/a", 3)
    assert owner.headers == [(("correlation-id", b"corr-c1"),)]


async def test_a_changed_row_wakes_the_timers() -> None:
    """A deadline before the end of the nap is not missed."""
    owner = Owner()
    view = MemoryView()
    await owner.timers.taken(view)
    async with running(owner):
        changed = row(retry__a=200)
        view.put(changed)
        owner.timers.changed(0, {b"c1:s1": changed})
        await owner.clock.advance(0.25)
        assert owner.names() == ["retry/a"]


async def test_a_lost_partition_fires_no_timers() -> None:
    owner = Owner()
    view = MemoryView()
    view.put(row(retry__a=500))
    await owner.timers.taken(view)
    async with running(owner):
        owner.timers.lost(0)
        owner.timers.changed(0, {b"c1:s1": row(retry__a=0)})
        await owner.clock.advance(2)
        assert owner.fired == []


async def test_timers_wait_for_a_log_that_is_down() -> None:
    owner = Owner()
    view = MemoryView()
    view.put(row(retry__a=500))
    await owner.timers.taken(view)
    async with running(owner):
        owner.down = True
        for _ in range(5):
            await owner.clock.advance(1)
        assert owner.fired == []
        owner.down = False
        for _ in range(3):
            await owner.clock.advance(1)
        assert "retry/a" in owner.names()


async def test_step_timeouts_have_a_grace_after_the_take_over() -> None:
    """They wait until the partition has folded to the log end at take-over and the grace has passed; others do not."""
    # specification 18.7
    owner = Owner(grace=30)
    view = MemoryView(position=5, end=9)
    view.put(row(timeout__a=0, gate__b=0))
    await owner.timers.taken(view)
    async with running(owner):
        for _ in range(40):
            await owner.clock.advance(1)
        assert set(owner.names()) == {"gate/b"}
        view.position = 9
        for _ in range(29):
            await owner.clock.advance(1)
        assert set(owner.names()) == {"gate/b"}
        for _ in range(3):
            await owner.clock.advance(1)
        assert "timeout/a" in owner.names()


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("another")])
async def test_an_error_that_is_no_outage_ends_the_timers(error: Exception) -> None:
    """The worker gets the error; timers never stop silently."""
    owner = Owner()

    async def failing(*_: Any) -> int:
        raise error

    timers = Timers(owner.clock, owner.log_clock, failing)
    await timers.taken(MemoryView())
    with pytest.raises(type(error)):
        await timers.run()
