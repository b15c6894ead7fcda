"""The world around the processes: its time, the messages under way, and the living, frozen and dead processes.

It is deterministic: the same seed and the same actions give the same messages.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable
from typing import Any, TypeVar

from tests.crash.loop import VirtualLoop

T = TypeVar("T")

# Step of the log's clock, in seconds. A crash takes less time, so no timestamp depends on it.
TICK = 3600.0
# The log's clock at the beginning; a multiple of the tick.
EPOCH_MS = 1_700_002_800_000


class World:
    """Virtual time, in seconds from 0, and the events in it."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.hosts: list[Host] = []
        self._happenings: list[tuple[float, int, Callable[[], None]]] = []
        self._caused = 0
        self._happened = 0

    def log_time(self) -> int:
        """The log's clock: milliseconds since the epoch."""
        return EPOCH_MS + int(self.now // TICK) * int(TICK * 1000)

    def time(self) -> int:
        """Milliseconds since the epoch, by the clock of everything but the log."""
        return EPOCH_MS + int(self.now * 1000)

    @property
    def moment(self) -> tuple[float, int, int]:
        """A value that changes when time passes, an event happens, or an event is caused."""
        return self.now, self._caused, self._happened

    def next_tick(self, ticks: int = 1) -> None:
        """Jump to the next step of the log's clock; timers due before it fire late, once."""
        self.now = (self.now // TICK + ticks) * TICK + 1.0

    def at(self, when: float, happening: Callable[[], None]) -> None:
        heapq.heappush(self._happenings, (when, self._caused, happening))
        self._caused += 1

    def after(self, seconds: float, happening: Callable[[], None]) -> None:
        self.at(self.now + seconds, happening)

    def step(self) -> bool:
        """Let the next event happen; return False if there is none."""
        if self._happenings and self._happenings[0][0] <= self.now:
            self._happened += 1
            heapq.heappop(self._happenings)[2]()
            return True
        running = [host for host in self.hosts if host.runs]
        turned = [host.loop.turn() for host in running]
        if any(turned):
            return True
        dues = [due for host in running if host.runs and (due := host.loop.next_timer) is not None]
        if self._happenings:
            dues.append(self._happenings[0][0])
        if not dues:
            return False
        self.now = max(self.now, min(dues))
        return True

    def latency(self, most: float) -> float:
        """A random duration in seconds, from a quarter of `most` to `most`."""
        return self.chance.uniform(most / 4, most)


class Host:
    """One operating system process: its loop, and its connection to the world, which ends with it."""

    def __init__(self, world: World, *, counted: bool = True) -> None:
        self.world = world
        self.loop = VirtualLoop(lambda: world.now, counted=counted)
        self.alive = True
        self.frozen = False
        self._held: list[Callable[[], None]] = []
        self._lanes: dict[object, float] = {}
        self.frozen_at = 0.0
        self.on_death: list[Callable[[], None]] = []
        self.on_thaw: list[Callable[[float], None]] = []
        """Called after a freeze with its length in seconds."""
        world.hosts.append(self)

    @property
    def runs(self) -> bool:
        return self.alive and not self.frozen and not self.loop.stopped

    def kill(self) -> None:
        """End it at once. Everything that it sent and the world has not received is lost."""
        self.alive = False
        self.world.hosts.remove(self)
        for last in self.on_death:
            last()
        self.loop.bury()

    def freeze(self) -> None:
        """Stop it, as SIGSTOP does; its buffers keep their content."""
        self.frozen = True
        self.frozen_at = self.world.now

    def thaw(self) -> None:
        """Continue it, as SIGCONT does, with the content of its buffers."""
        self.frozen = False
        self.loop.stopped = False
        for learn in self.on_thaw:
            learn(self.world.now - self.frozen_at)
        held, self._held = self._held, []
        for happening in held:
            self.world.after(0.0, lambda happening=happening: self._guarded(happening))  # type: ignore[misc]

    def after(
        self, seconds: float, happening: Callable[[], None], lane: object = None, *, written: bool = False
    ) -> None:
        """Cause an event after some seconds, unless the process is dead by then. Events of a lane keep their order.

        `written`: the kernel has the data already, so the event also happens while the process is frozen.
        """
        when = self.world.now + seconds
        if lane is not None:
            when = self._lanes[lane] = max(when, self._lanes.get(lane, 0.0))
        self.world.at(when, lambda: self._guarded(happening, written=written))

    def _guarded(self, happening: Callable[[], None], *, written: bool = False) -> None:
        if not self.alive:
            return
        if self.frozen and not written:
            self._held.append(happening)
            return
        happening()

    def future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self.loop)

    def call(self, seconds: float, there: Callable[[], T], lane: object = None) -> asyncio.Future[T]:
        """Make a call to the world: it takes effect after up to `seconds`, and its answer comes a little later."""
        answer: asyncio.Future[T] = self.future()

        def happen() -> None:
            try:
                result, error = there(), None
            except Exception as raised:  # noqa: BLE001 - it travels to whoever asked
                result, error = None, raised
            self.after(self.world.latency(0.01), lambda: _settle(answer, result, error))

        self.after(self.world.latency(seconds), happen, lane)
        return answer


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
