"""Timers of the owned partitions: a due timer becomes a TimerFired command. A late or repeated one is harmless."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from ports.clock import Clock
from ports.log import Header, LogUnavailable, Position
from streams.log_clock import LogClock
from streams.partition_timers import DueTimer, PartitionTimers, TimedPartition
from streams.topics import CORRELATION_ID
from tables.commands import Noop, TimerFired, encode_command
from tables.instance import Instance

log = structlog.get_logger(__name__)

# A no-op command refreshes a partition's clock at least this often, where the partition has timers.
LEARN_SECONDS = 60
LONGEST_NAP_SECONDS = 1.0

# Appends a command: (partition, key, value, headers) → its position. Raises LogUnavailable.
Send = Callable[[int, bytes, bytes, Sequence[Header]], Awaitable[Position]]
NOOP = encode_command(Noop())


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
        part = PartitionTimers(view, LogClock(self._clock, report=self._log_clock))
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
        part.changed(rows)
        if part.next != before:
            self._wake.set()

    def late_seconds(self) -> float:
        """Return how far the most overdue timer of all partitions is behind."""
        return max((part.late_seconds() for part in self._parts.values()), default=0.0)

    async def run(self) -> None:
        """Fire due timers until cancelled."""
        while True:
            if not await self._fire_all():
                await self._nap()

    async def _fire_all(self) -> bool:
        """Fire the due timers of each partition; return whether there were any."""
        fired = False
        unavailable = ""
        for number, part in list(self._parts.items()):
            if self._parts.get(number) is not part:
                continue  # lost meanwhile
            try:
                fired = await self._fire_due(number, part) or fired
            except LogUnavailable as error:
                unavailable = str(error)
        if unavailable:
            log.warning("timers_wait", reason=unavailable)
        return fired and not unavailable

    async def _fire_due(self, number: int, part: PartitionTimers) -> bool:
        await self._learn(part)
        due: list[DueTimer] = []
        if part.clock.age() <= LEARN_SECONDS:  # else the present is not known
            due = part.take_due(self._clock.monotonic(), steps_too=self._caught_up(part)) + await self._nudges(part)
        await self._fire(number, part, due)
        return bool(due)

    async def _learn(self, part: PartitionTimers) -> None:
        """Learn the time of a partition's log, where its timers need it; the first partition's in any case."""
        needed = not part.empty or part.view.number == min(self._parts, default=-1)
        if needed and part.clock.age() > LEARN_SECONDS:
            self._acknowledged(part, await self._send(part.view.number, b"\0clock", NOOP, ()))

    def _acknowledged(self, part: PartitionTimers, position: Position) -> None:
        part.clock.acknowledged(position.timestamp)
        self._log_clock.acknowledged(position.timestamp)

    async def _nudges(self, part: PartitionTimers) -> list[DueTimer]:
        """Return timers of rows that are ahead of the log's clock."""
        for _ in part.suspects():
            await self._clock.sleep(0)
        return part.nudges()

    def _caught_up(self, part: PartitionTimers) -> bool:
        """Return whether answers that arrived during the take-over have had time to be folded (specification 18.7)."""
        if part.caught_up_at is None:
            if part.view.position < part.view.end_at_take_over:
                return False
            part.caught_up_at = self._clock.monotonic()
        return self._clock.monotonic() - part.caught_up_at >= self._grace

    async def _fire(self, number: int, part: PartitionTimers, due: list[DueTimer]) -> None:
        sends = [self._clock.spawn(self._fire_one(number, part, one), name=f"timer {one.timer_id}") for one in due]
        failed: BaseException | None = None
        for send in sends:
            try:
                await send
            except LogUnavailable as error:
                failed = error
        if failed is not None:
            raise failed

    async def _fire_one(self, number: int, part: PartitionTimers, due: DueTimer) -> None:
        command = TimerFired(instance_id=due.key.decode(), timer_id=due.timer_id, attempt=due.timer.attempt)
        headers = ((CORRELATION_ID, due.correlation_id.encode()),)
        try:
            position = await self._send(number, due.key, encode_command(command), headers)
        except LogUnavailable:
            part.not_sent(due, self._clock.monotonic())
            raise
        part.sent(due, position, self._clock.monotonic())
        self._acknowledged(part, position)

    async def _nap(self) -> None:
        self._wake.clear()
        monotonic = self._clock.monotonic()
        seconds = min([LONGEST_NAP_SECONDS, *(part.wait_seconds(monotonic) for part in self._parts.values())])
        try:
            async with self._clock.timeout(max(seconds, 0.005)):
                await self._wake.wait()
        except TimeoutError:
            return
