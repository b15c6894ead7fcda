"""The world around the processes: its time, the messages under way, and which process is alive, frozen or dead.

Deterministic: whoever starts it with the same seed and does the same sees the same, message by message.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable
from typing import Any, TypeVar

from tests.crash.loop import VirtualLoop

T = TypeVar("T")

# Seconds by which the log's clock moves on at once. A crash costs less, so that no timestamp shows when it was.
TICK = 3600.0
# What the log's clock shows at the beginning; a multiple of the tick.
EPOCH_MS = 1_700_002_800_000


class World:
    """Virtual time, in seconds from 0, and what happens in it."""

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
        """Milliseconds since the epoch, as everybody else counts them."""
        return EPOCH_MS + int(self.now * 1000)

    @property
    def moment(self) -> tuple[float, int, int]:
        """Another one as soon as time has passed, something has happened, or somebody has caused something."""
        return self.now, self._caused, self._happened

    def next_tick(self, ticks: int = 1) -> None:
        """Leap to where the log's clock has just moved on; whoever slept has overslept, once."""
        self.now = (self.now // TICK + ticks) * TICK + 1.0

    def at(self, when: float, happening: Callable[[], None]) -> None:
        heapq.heappush(self._happenings, (when, self._caused, happening))
        self._caused += 1

    def after(self, seconds: float, happening: Callable[[], None]) -> None:
        self.at(self.now + seconds, happening)

    def step(self) -> bool:
        """Let happen what comes next; False when nothing ever will."""
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
        """How long something takes, in seconds: at least a quarter of the most."""
        return self.chance.uniform(most / 4, most)


class Host:
    """One operating system process: its loop, and its way to the world, which ends with it."""

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
        """Told how many seconds it stood still."""
        world.hosts.append(self)

    @property
    def runs(self) -> bool:
        return self.alive and not self.frozen and not self.loop.stopped

    def kill(self) -> None:
        """Nothing of it happens any more; what it had sent and the world has not seen yet is lost."""
        self.alive = False
        self.world.hosts.remove(self)
        for last in self.on_death:
            last()
        self.loop.bury()

    def freeze(self) -> None:
        """SIGSTOP: it does nothing, and what it has in its buffers stays there."""
        self.frozen = True
        self.frozen_at = self.world.now

    def thaw(self) -> None:
        """SIGCONT: it goes on as if nothing had been, and so does what it was about to send."""
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
        """Something this process causes; it does not happen if the process is dead by then. A lane keeps order.

        `written`: the kernel has it already, so that it happens also while the process is frozen.
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
        """Do something in the world: it happens after up to `seconds`, and its answer is here a little later."""
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
