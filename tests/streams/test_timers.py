"""Timers fire by the log's clock, never too early, and again while the row still has them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from ports.log import Header, LogUnavailable, Position
from streams.log_clock import LogClock
from streams.partition_timers import AGAIN_SECONDS, TIMERS_PER_TURN, DueTimer, PartitionTimers, due_timers
from streams.timers import LEARN_SECONDS, Timers
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
        self.down_partition = -1
        self.ahead_by = 0
        """Milliseconds by which the clock of the next acknowledgement is ahead."""
        self.offsets = itertools.count()
        self.timers = Timers(self.clock, self.log_clock, self.send, grace_seconds=grace)

    async def send(self, number: int, key: bytes, value: bytes, headers: Sequence[Header]) -> Position:
        if self.down or number == self.down_partition:
            raise LogUnavailable("log_unavailable", "down")
        command = decode_command(value)
        if isinstance(command, Noop):
            self.noops += 1
        else:
            assert isinstance(command, TimerFired)
            assert key == command.instance_id.encode()
            self.fired.append((number, command))
            self.headers.append(headers)
        ahead, self.ahead_by = self.ahead_by, 0
        return Position(number, next(self.offsets), self.now() + ahead)

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


class Heap:
    """The timers of one partition; the log's clock is set by hand, and each timer taken is in the log at once."""

    def __init__(self, *rows: Instance) -> None:
        self.hand = HandClock()
        self.view = MemoryView()
        for one in rows:
            self.view.put(one)
        self.timers = PartitionTimers(self.view, LogClock(self.hand))
        assert not list(self.timers.fill()), "so few need no pause"
        self.end = 0

    def put(self, row: Instance) -> None:
        self.view.put(row)
        self.timers.changed({row.instance_id.encode(): row})

    def take(self, after: int, *, steps_too: bool = True) -> list[DueTimer]:
        """Take what is due so many milliseconds after START."""
        self.hand.seconds = 100 + after / 1000
        self.timers.clock.acknowledged(START + after)
        fired = self.timers.take_due(self.hand.seconds, steps_too=steps_too)
        for one in fired:
            self.timers.sent(one, Position(0, self.end, START + after), self.hand.seconds)
            self.end += 1
        return fired

    def fold(self) -> None:
        """Let the partition fold everything."""
        self.view.position = self.end


def names(fired: list[DueTimer]) -> list[str]:
    return [one.timer_id for one in fired]


def test_the_heap_is_rebuilt_from_the_rows() -> None:
    heap = Heap(row("c1", retry__a=300), row("c2", retry__a=100), row("c3"))
    assert heap.timers.next == START + 100


def test_no_timer_is_taken_before_it_is_due() -> None:
    heap = Heap(row(retry__a=100))
    assert heap.take(99) == []
    (due,) = heap.take(100)
    assert (due.key, due.timer_id, due.timer.attempt, due.correlation_id) == (b"c1:s1", "retry/a", 3, "corr-c1")


def test_all_due_timers_of_a_row_are_taken_at_once_and_the_others_wait() -> None:
    heap = Heap(row(retry__a=100, ask__b=100, gate__c=101))
    assert set(names(heap.take(100))) == {"retry/a", "ask/b"}
    assert names(heap.take(101)) == ["gate/c"]


def test_a_timer_that_is_not_folded_is_not_taken_again() -> None:
    # specification 18.15
    heap = Heap(row(retry__a=100))
    assert names(heap.take(100)) == ["retry/a"]
    assert heap.take(100_000) == []


def test_a_timer_that_was_judged_early_is_taken_again_after_the_missing_time() -> None:
    """A second at least, on the monotonic clock; an entry leaves the heap only when its row no longer has the timer."""
    heap = Heap(row(retry__a=100))
    (one,) = heap.take(100)
    one.appended_at = START - 2900
    heap.fold()
    assert heap.take(3099) == []
    (one,) = heap.take(3100)
    heap.fold()
    assert heap.take(3100 + int(AGAIN_SECONDS * 1000) - 1) == []
    assert names(heap.take(3100 + int(AGAIN_SECONDS * 1000))) == ["retry/a"]


def test_a_timer_set_anew_while_the_old_one_waits_for_its_fold_is_taken() -> None:
    heap = Heap(row(retry__a=100))
    heap.take(100)
    heap.put(row(retry__a=150))
    assert names(heap.take(150)) == ["retry/a"]


def test_another_timer_of_the_row_is_taken_while_one_waits_for_its_fold() -> None:
    heap = Heap(row(retry__a=100))
    heap.take(100)
    heap.put(row(retry__a=100, gate__b=200))
    assert names(heap.take(200)) == ["gate/b"]


def test_a_timer_that_its_row_no_longer_has_is_dropped() -> None:
    heap = Heap(row(retry__a=100))
    heap.view.put(row())
    assert heap.take(1000) == []
    assert heap.timers.empty


def test_a_folded_timer_is_dropped() -> None:
    heap = Heap(row(retry__a=100))
    heap.take(100)
    heap.put(row())
    heap.fold()
    assert heap.take(5000) == []
    assert heap.timers.empty


def test_the_timers_of_a_deleted_row_are_dropped() -> None:
    heap = Heap(row(retry__a=100))
    heap.view.tables[CEREMONIES].clear()
    assert heap.take(1000) == []
    assert heap.timers.empty


def test_a_postponed_deadline_is_corrected_when_the_old_one_comes_up() -> None:
    heap = Heap(row(retry__a=100))
    heap.put(row(retry__a=900))
    assert heap.take(100) == []
    assert heap.timers.next == START + 900


def test_an_earlier_deadline_replaces_the_old_one() -> None:
    heap = Heap(row(retry__a=900))
    heap.put(row(retry__a=100))
    assert len(heap.take(100)) == 1
    assert heap.take(900) == [], "the former entry counts no more"


def test_the_timers_taken_at_once_are_bounded() -> None:
    heap = Heap(*(row(f"c{n}", retry__a=0) for n in range(TIMERS_PER_TURN + 10)))
    assert len(heap.take(0)) == TIMERS_PER_TURN
    assert len(heap.take(0)) == 10


def test_only_ceremony_max_fires_in_a_paused_ceremony() -> None:
    """Its step and gate timers hold a remaining duration, not a time; `ceremony_max` continues."""
    paused = replace(row(retry__a=-START + 5, ceremony_max=100), status=CeremonyStatus.PAUSED)
    assert due_timers(paused, START + 100) == [("ceremony_max", Timer(START + 100, 3))]
    assert Heap(paused).timers.next == START + 100


def test_step_timeouts_are_only_taken_when_allowed() -> None:
    heap = Heap(row(timeout__a=100, retry__b=100))
    assert names(heap.take(100, steps_too=False)) == ["retry/b"]
    assert heap.take(200, steps_too=False) == []
    assert names(heap.take(300)) == ["timeout/a"]


def test_a_row_ahead_of_the_clock_has_one_timer_judged_early() -> None:
    """So that timers that a clock ahead has set are shortened."""
    ahead = replace(row(retry__a=90_000_000), updated_at=START + 86_400_000)
    heap = Heap()
    heap.take(0)
    heap.put(ahead)
    assert names(heap.timers.nudges()) == ["retry/a"]
    heap.put(ahead)
    assert heap.timers.nudges() == []
    heap.put(replace(ahead, updated_at=ahead.updated_at + 1))
    assert names(heap.timers.nudges()) == [], "the one that was sent waits for its fold"


def test_rows_ahead_of_the_clock_are_found_at_the_take_over_and_after_the_clock_was_set_back() -> None:
    ahead = replace(row(retry__a=90_000_000), updated_at=START + 86_400_000)
    heap = Heap(ahead)
    heap.take(0)
    assert list(heap.timers.suspects()) == []
    assert names(heap.timers.nudges()) == ["retry/a"]
    later = replace(row("c2", retry__a=90_000_000), updated_at=START + 86_400_000)
    for _ in range(2):
        heap.timers.clock.acknowledged(START + 86_400_000)
    heap.put(later)
    assert heap.timers.nudges() == [], "the clock agrees with the row"
    heap.take(10)
    list(heap.timers.suspects())
    assert [one.key for one in heap.timers.nudges()] == [b"c2:s1"]


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


async def test_one_acknowledgement_from_a_clock_a_day_ahead_delays_no_timer() -> None:
    # specification 18.14
    owner = Owner()
    view = MemoryView()
    view.put(row("c1", retry__a=500))
    view.put(row("c2", retry__a=5000))
    await owner.timers.taken(view)
    async with running(owner):
        owner.ahead_by = 86_400_000
        await owner.clock.advance(0.6)
        assert owner.names() == ["retry/a"]
        for _ in range(40):
            await owner.clock.advance(0.1)
        assert owner.names() == ["retry/a"], "none is early"
        await owner.clock.advance(0.5)
        assert [command.instance_id for _, command in owner.fired] == ["c1:s1", "c2:s1"]
        assert owner.log_clock.ahead is not None and owner.log_clock.ahead.by > 86_000_000


async def test_timers_are_not_early_while_a_clock_ahead_is_not_confirmed() -> None:
    """The first acknowledgement of all cannot be checked: what it made early is put back."""
    owner = Owner()
    view = MemoryView()
    view.put(row("c1", retry__a=3000))
    owner.ahead_by = 86_400_000
    await owner.timers.taken(view)
    async with running(owner):
        assert owner.names() == ["retry/a"]
        view.position = 10
        for _ in range(25):
            await owner.clock.advance(0.1)
        assert owner.names() == ["retry/a"]
        for _ in range(6):
            await owner.clock.advance(0.1)
        assert owner.names() == ["retry/a", "retry/a"], "after what was missing"


async def test_six_thousand_timers_are_sent_once_while_nothing_is_folded() -> None:
    # specification 18.15
    owner = Owner()
    view = MemoryView()
    for number in range(6000):
        view.put(row(f"c{number}", retry__a=0))
    taking = asyncio.create_task(owner.timers.taken(view))
    while not taking.done():
        await owner.clock.advance(0)  # the rows are read with pauses
    async with running(owner):
        for _ in range(30):
            await owner.clock.advance(1)
        assert len(owner.fired) == 6000


async def test_a_partition_whose_log_is_away_stops_no_other() -> None:
    owner = Owner()
    for number in (0, 1):
        view = MemoryView(number)
        view.put(row(retry__a=500))
        await owner.timers.taken(view)
    owner.down_partition = 0
    async with running(owner):
        await owner.clock.advance(1)
        assert [number for number, _ in owner.fired] == [1]


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

    async def failing(*_: Any) -> Position:
        raise error

    timers = Timers(owner.clock, owner.log_clock, failing)
    await timers.taken(MemoryView())
    with pytest.raises(type(error)):
        await timers.run()


# -- lateness, for the metrics


def test_a_timer_that_is_overdue_is_late_until_its_command_is_folded() -> None:
    # specification 29.2
    heap = Heap(row(retry__a=100))
    heap.timers.clock.acknowledged(START + 50)
    assert heap.timers.late_seconds() == 0
    heap.timers.clock.acknowledged(START + 3100)
    assert heap.timers.late_seconds() == 3
    heap.take(4100)
    assert heap.timers.late_seconds() == 4, "sent, but not folded"
    heap.put(row())
    heap.fold()
    heap.take(5100)
    assert heap.timers.late_seconds() == 0


async def test_the_lateness_of_a_worker_is_that_of_its_latest_partition() -> None:
    owner = Owner()
    assert owner.timers.late_seconds() == 0
    owner.down = True
    for number, due in enumerate((500, 2000)):
        view = MemoryView(number)
        view.put(row(retry__a=due))
        await owner.timers.taken(view)
    for part in owner.timers._parts.values():
        part.clock.acknowledged(START + 2500)
    assert owner.timers.late_seconds() == 2
