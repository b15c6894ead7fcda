"""Timers of the owned partitions: a heap of due times per partition; a due timer becomes a TimerFired command.

A late or repeated TimerFired is harmless, so an entry stays in the heap until its row no longer has the timer.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import structlog

from ports.clock import Clock
from ports.log import Header, LogUnavailable
from streams.log_clock import LogClock
from streams.topics import CEREMONIES, CORRELATION_ID
from tables.commands import Noop, TimerFired, encode_command
from tables.instance import CeremonyStatus, Instance, Outline, decode_outline, next_due

log = structlog.get_logger(__name__)

# A fired timer that is still in its row fires again after this time.
AGAIN_MS = 1000
# A no-op command refreshes the log's clock at least this often.
LEARN_SECONDS = 60
# Rows examined before other tasks get the event loop.
ROWS_PER_TURN = 1000
# Timers fired per partition before other partitions get their turn.
TIMERS_PER_TURN = 500
LONGEST_NAP_SECONDS = 1.0

# Appends a command: (partition, key, value, headers) → append time in milliseconds. Raises LogUnavailable.
Send = Callable[[int, bytes, bytes, Sequence[Header]], Awaitable[int]]
NOOP = encode_command(Noop())


class DueTimer(NamedTuple):
    """A timer that is due."""

    key: bytes
    timer_id: str
    attempt: int
    correlation_id: str


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

    def __init__(self, view: TimedPartition) -> None:
        self.view = view
        self.caught_up_at: float | None = None
        self._heap: list[tuple[int, bytes]] = []
        self._due: dict[bytes, int] = {}

    def fill(self) -> Iterator[None]:
        """Read the timers of all rows before any row changes; yields now and then, to let other tasks run."""
        dues = self._due
        for number, (key, row) in enumerate(self.view.scan(CEREMONIES, decode_outline), start=1):
            if (due := next_due(row)) is not None:
                dues[key] = due
            if number % ROWS_PER_TURN == 0:
                yield
        self._heap = [(due, key) for key, due in dues.items()]
        heapq.heapify(self._heap)

    def changed(self, key: bytes, row: Instance | Outline | None) -> None:
        """Note a changed row. An entry that is too early stays, and is corrected when it comes up."""
        due = None if row is None else next_due(row)
        if due is not None and due < self._due.get(key, due + 1):
            self._put(key, due)

    def _put(self, key: bytes, due: int) -> None:
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))

    @property
    def next(self) -> int | None:
        """Earliest due time in the heap."""
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: int, *, steps_too: bool) -> list[DueTimer]:
        """Return about TIMERS_PER_TURN due timers. `steps_too`: step timeouts may fire."""
        fired: list[DueTimer] = []
        rows = self.view.rows(CEREMONIES)
        while self._heap and self._heap[0][0] <= now and len(fired) < TIMERS_PER_TURN:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) != due:
                continue  # an earlier entry took its place
            del self._due[key]
            row = rows.get(key)
            later = None if row is None else next_due(row)
            if row is None or later is None:
                continue
            if later > now:
                self._put(key, later)
                continue
            correlation_id = row.correlation_id
            fired += [DueTimer(key, *timer, correlation_id) for timer in due_timers(row, now, steps_too=steps_too)]
            self._put(key, now + AGAIN_MS)
        return fired


def due_timers(row: Instance, now: int, *, steps_too: bool) -> Iterable[tuple[str, int]]:
    """Return (timer id, attempt) of the due timers of a row."""
    paused = row.status is CeremonyStatus.PAUSED
    for name, timer in row.timers.items():
        if timer.due > now or (paused and name != "ceremony_max"):
            continue
        if steps_too or not name.startswith("timeout/"):
            yield name, timer.attempt


class Timers:
    """Timers of all partitions that this worker owns."""

    def __init__(self, clock: Clock, log_clock: LogClock, send: Send, *, grace_seconds: float = 30.0) -> None:
        self._clock = clock
        self._log_clock = log_clock
        self._send = send
        self._grace = grace_seconds
        self._parts: dict[int, PartitionTimers] = {}
        self._wake = asyncio.Event()

    async def taken(self, view: TimedPartition) -> None:
        """Rebuild the heap of a recovered partition from its rows, before it folds."""
        part = PartitionTimers(view)
        for _ in part.fill():
            await self._clock.sleep(0)
        self._parts[view.number] = part
        self._wake.set()

    def lost(self, number: int) -> None:
        self._parts.pop(number, None)

    def changed(self, number: int, rows: Mapping[bytes, Instance | None]) -> None:
        """Note rows of a partition that became visible."""
        part = self._parts.get(number)
        if part is None:
            return
        before = part.next
        for key, row in rows.items():
            part.changed(key, row)
        if part.next != before:
            self._wake.set()

    async def run(self) -> None:
        """Fire due timers until cancelled."""
        while True:
            try:
                await self._learn()
                fired = await self._fire_all()
            except LogUnavailable as error:
                log.warning("timers_wait", reason=str(error))
                fired = False
            if not fired:
                await self._nap()

    async def _learn(self) -> None:
        if self._parts and self._log_clock.age() > LEARN_SECONDS:
            number = min(self._parts)
            self._log_clock.acknowledged(await self._send(number, b"\0clock", NOOP, ()))

    async def _fire_all(self) -> bool:
        now = self._log_clock.now()
        fired = False
        for number, part in list(self._parts.items()):
            due = part.take_due(now, steps_too=self._caught_up(part))
            fired = fired or bool(due)
            await self._fire(number, due)
        return fired

    def _caught_up(self, part: PartitionTimers) -> bool:
        """Return whether answers that arrived during the take-over have had time to be folded (specification 18.7)."""
        if part.caught_up_at is None:
            if part.view.position < part.view.end_at_take_over:
                return False
            part.caught_up_at = self._clock.monotonic()
        return self._clock.monotonic() - part.caught_up_at >= self._grace

    async def _fire(self, number: int, due: list[DueTimer]) -> None:
        sends = [self._clock.spawn(self._fire_one(number, one), name=f"timer {one.timer_id}") for one in due]
        failed: BaseException | None = None
        for send in sends:
            try:
                await send
            except LogUnavailable as error:
                failed = error
        if failed is not None:
            raise failed

    async def _fire_one(self, number: int, due: DueTimer) -> None:
        command = TimerFired(instance_id=due.key.decode(), timer_id=due.timer_id, attempt=due.attempt)
        headers = ((CORRELATION_ID, due.correlation_id.encode()),)
        self._log_clock.acknowledged(await self._send(number, due.key, encode_command(command), headers))

    async def _nap(self) -> None:
        self._wake.clear()
        now = self._log_clock.now()
        dues = [part.next for part in self._parts.values() if part.next is not None]
        seconds = min([LONGEST_NAP_SECONDS, *((due - now) / 1000 for due in dues)])
        try:
            async with self._clock.timeout(max(seconds, 0.005)):
                await self._wake.wait()
        except TimeoutError:
            return
