"""The timers of one partition: a heap of due times, and the timers that were sent.

A timer that was sent is sent again only after its command was folded and the row still holds it. One that was judged
early is put back, due after the time that is missing on the monotonic clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from ports.log import Position
from streams.log_clock import LogClock
from streams.topics import CEREMONIES
from tables.instance import CeremonyStatus, Instance, Outline, Timer, decode_outline, next_due
from tables.timers import CLOCK_AHEAD_MS, RUN_ON

# A timer that was judged early, or whose command may be lost, is sent again after this time at the earliest.
AGAIN_SECONDS = 1.0
# Rows examined before other tasks get the event loop.
ROWS_PER_TURN = 1000
# Timers fired per partition before other partitions get their turn.
TIMERS_PER_TURN = 500


@dataclass(slots=True, eq=False)
class DueTimer:
    """A timer to be sent, or that was sent."""

    key: bytes
    timer_id: str
    timer: Timer
    correlation_id: str
    appended_at: int = 0
    """Append time of its command in milliseconds."""
    sent_at: float = 0.0
    """Monotonic time."""


class TimedPartition(Protocol):
    """The part of a partition's view that timers use."""

    number: int

    def rows(self, table: str) -> Mapping[bytes, Instance]: ...

    def scan(self, table: str, decode: Callable[[bytes], Any]) -> Iterator[tuple[bytes, Any]]: ...

    @property
    def position(self) -> int: ...

    @property
    def end_at_take_over(self) -> int: ...


class PartitionTimers:
    """The heap of one partition: entries (due, key), and the due time of each key's valid entry."""

    def __init__(self, view: TimedPartition, clock: LogClock) -> None:
        """`clock`: the clock of this partition's append times."""
        self.view = view
        self.clock = clock
        self.caught_up_at: float | None = None
        self._heap: list[tuple[int, bytes]] = []
        self._due: dict[bytes, int] = {}
        self._out: dict[bytes, dict[str, DueTimer]] = {}
        """Timers that wait for their fold or to be sent again, by key and id; they have no entry in the heap."""
        self._sent: list[tuple[int, int, DueTimer]] = []
        """A heap by the offset of the command."""
        self._put_back: list[tuple[float, int, DueTimer]] = []
        """A heap by the monotonic time at which the timer may be sent again."""
        self._after_grace: list[DueTimer] = []
        """Step timeouts that are due and wait for the end of the grace."""
        self._serial = count()
        self._newest = 0
        """The latest `updated_at` of a row."""
        self._suspects: dict[bytes, None] = {}
        """Rows ahead of the clock, whose timers may have been set too late."""
        self._set_backs = -1
        self._nudged: dict[bytes, int] = {}
        """Rows ahead of the clock that were dealt with, with their `updated_at`."""

    def fill(self) -> Iterator[None]:
        """Read the timers of all rows before any row changes; yields now and then, to let other tasks run."""
        dues = self._due
        for number, (key, row) in enumerate(self.view.scan(CEREMONIES, decode_outline), start=1):
            if (due := next_due(row)) is not None:
                dues[key] = due
                self._newest = max(self._newest, row.updated_at)
            if number % ROWS_PER_TURN == 0:
                yield
        self._heap = [(due, key) for key, due in dues.items()]
        heapq.heapify(self._heap)

    def changed(self, rows: Mapping[bytes, Instance | Outline | None]) -> None:
        """Note changed rows. An entry that is too early stays, and is corrected when it comes up."""
        horizon, newest = self.clock.now() + CLOCK_AHEAD_MS, self._newest
        dues, out = self._due, self._out
        for key, row in rows.items():  # each row of each batch: without a call where nothing is out
            if row is None:
                continue
            updated = row.updated_at
            if updated > newest:  # noqa: PLR1730 - as above
                newest = updated
            if updated > horizon:
                self._suspects[key] = None
            if out and key in out:
                self._queue(key, row)
            elif (due := next_due(row)) is not None and due < dues.get(key, due + 1):
                self._put(key, due)
        self._newest = newest

    def _queue(self, key: bytes, row: Instance | Outline) -> None:
        """Enter the earliest timer of a row that is not out."""
        out = self._out.get(key)
        due = next_due(row) if out is None else _next_due_but(row, out)
        if due is not None and due < self._due.get(key, due + 1):
            self._put(key, due)

    def _put(self, key: bytes, due: int) -> None:
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))

    @property
    def next(self) -> int | None:
        """Earliest due time in the heap."""
        return self._heap[0][0] if self._heap else None

    def late_seconds(self) -> float:
        """Return how far the most overdue timer is behind, sent or not; 0 where none is due."""
        waiting = min((one.timer.due for out in self._out.values() for one in out.values()), default=None)
        dues = [due for due in (self.next, waiting) if due is not None]
        return max(0, self.clock.now() - min(dues)) / 1000 if dues else 0.0

    def wait_seconds(self, monotonic: float) -> float:
        """Return the seconds until the next timer is due or may be sent again; infinite without one."""
        seconds = (self._heap[0][0] - self.clock.now()) / 1000 if self._heap else float("inf")
        return min(seconds, self._put_back[0][0] - monotonic) if self._put_back else seconds

    @property
    def empty(self) -> bool:
        return not (self._heap or self._out)

    # -- firing

    def take_due(self, monotonic: float, *, steps_too: bool) -> list[DueTimer]:
        """Return about TIMERS_PER_TURN due timers, to be sent. `steps_too`: step timeouts may fire."""
        self._settle()
        self._release(monotonic, steps_too=steps_too)
        now = self.clock.now()
        fired: list[DueTimer] = []
        rows = self.view.rows(CEREMONIES)
        while self._heap and self._heap[0][0] <= now and len(fired) < TIMERS_PER_TURN:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) != due:
                continue  # an earlier entry took its place
            del self._due[key]
            row = rows.get(key)
            if row is not None:
                fired += self._fire(key, row, due_timers(row, now), steps_too=steps_too)
                self._queue(key, row)
        return fired

    def _fire(
        self, key: bytes, row: Instance, timers: Iterable[tuple[str, Timer]], *, steps_too: bool
    ) -> Iterator[DueTimer]:
        for timer_id, timer in timers:
            out = self._out.get(key, {}).get(timer_id)
            if out is not None and out.timer == timer:
                continue
            one = DueTimer(key, timer_id, timer, row.correlation_id)
            self._out.setdefault(key, {})[timer_id] = one
            if steps_too or not timer_id.startswith("timeout/"):
                yield one
            else:
                self._after_grace.append(one)

    def sent(self, one: DueTimer, position: Position, monotonic: float) -> None:
        """Note that the command of a timer is in the log."""
        one.appended_at, one.sent_at = position.timestamp, monotonic
        heapq.heappush(self._sent, (position.offset, next(self._serial), one))

    def not_sent(self, one: DueTimer, monotonic: float) -> None:
        """Note that the command of a timer may not be in the log."""
        self._put_it_back(one, monotonic + AGAIN_SECONDS)

    def _settle(self) -> None:
        """Look at the rows of timers whose command is folded: they are done, or were judged early."""
        rows = self.view.rows(CEREMONIES)
        while self._sent and self._sent[0][0] < self.view.position:
            one = heapq.heappop(self._sent)[2]
            row = rows.get(one.key)
            if row is not None and row.timers.get(one.timer_id) == one.timer:
                missing = (one.timer.due - one.appended_at) / 1000
                self._put_it_back(one, one.sent_at + max(missing, AGAIN_SECONDS))
            else:
                self._forget(one)

    def _put_it_back(self, one: DueTimer, at: float) -> None:
        heapq.heappush(self._put_back, (at, next(self._serial), one))

    def _release(self, monotonic: float, *, steps_too: bool) -> None:
        while self._put_back and self._put_back[0][0] <= monotonic:
            self._forget(heapq.heappop(self._put_back)[2])
        if steps_too and self._after_grace:
            held, self._after_grace = self._after_grace, []
            for one in held:
                self._forget(one)

    def _forget(self, one: DueTimer) -> None:
        """Let the row's own due time count again."""
        out = self._out.get(one.key)
        if out is not None and out.get(one.timer_id) is one:
            del out[one.timer_id]
            if not out:
                del self._out[one.key]
        row = self.view.rows(CEREMONIES).get(one.key)
        if row is not None:
            self._queue(one.key, row)

    # -- rows ahead of the clock

    def suspects(self) -> Iterator[None]:
        """Find the rows ahead of a clock that was set back, or of all rows after a take-over; yields now and then."""
        if self._set_backs == self.clock.set_backs:
            return
        self._set_backs = self.clock.set_backs
        horizon = self.clock.now() + CLOCK_AHEAD_MS
        if self._newest <= horizon:
            return
        for number, (key, row) in enumerate(self.view.scan(CEREMONIES, decode_outline), start=1):
            if row.updated_at > horizon:
                self._suspects[key] = None
            if number % ROWS_PER_TURN == 0:
                yield

    def nudges(self) -> list[DueTimer]:
        """Return a timer, not due yet, of each row that is ahead: its fold shortens timers that were set too late."""
        if not self._suspects:
            return []
        some = list(self._suspects)[:TIMERS_PER_TURN]
        horizon = self.clock.now() + CLOCK_AHEAD_MS
        rows = self.view.rows(CEREMONIES)
        found: list[DueTimer] = []
        for key in some:
            del self._suspects[key]
            row = rows.get(key)
            if row is not None and row.updated_at > horizon and self._nudged.get(key) != row.updated_at:
                self._nudged[key] = row.updated_at
                found += self._fire(key, row, _running(row)[:1], steps_too=True)
        return found


def _running(row: Instance | Outline) -> list[tuple[str, Timer]]:
    """Return the timers that no pause has stopped."""
    if row.status is not CeremonyStatus.PAUSED:
        return list(row.timers.items())
    return [(timer_id, timer) for timer_id, timer in row.timers.items() if timer_id in RUN_ON]


def due_timers(row: Instance, now: int) -> list[tuple[str, Timer]]:
    """Return the due timers of a row."""
    return [(timer_id, timer) for timer_id, timer in _running(row) if timer.due <= now]


def _next_due_but(row: Instance | Outline, out: Mapping[str, DueTimer]) -> int | None:
    """Return the earliest due time of the timers that are not out."""
    dues = [timer.due for timer_id, timer in _running(row) if timer_id not in out or out[timer_id].timer != timer]
    return min(dues, default=None)
