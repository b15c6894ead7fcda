"""Plays one ceremony on processes that are killed at given awaits, or frozen while another one takes over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bridge.nats.streams import CEREMONY
from tests.crash.process import Process, Surroundings
from tests.crash.script import PATIENCE_SECONDS, SCRIPT, acknowledged, asks, at_rest

STOPPING = len(SCRIPT)


class Stuck(AssertionError):
    """A scene did not end: something was lost, or waits for ever."""


@dataclass
class Play:
    """The progress of the script. It goes on with the process that lives."""

    around: Surroundings
    scene: int = -1
    begun_at: float = 0.0
    awaits: list[int] = field(default_factory=list)
    """The number of awaits that each ended process reached."""
    problems: list[str] = field(default_factory=list)
    told_at: list[int] = field(default_factory=list)
    """Awaits of the process when CEREMONY got a message, whose acknowledgement is then under way."""
    heard_at: list[int] = field(default_factory=list)
    """Awaits of the process when messages were delivered to it."""
    asked_at: list[int] = field(default_factory=list)
    """Awaits of the process when a client called it."""
    away: float = 0.0
    """Seconds without a process, or with a frozen one."""
    recorded: bool = False
    """Whether log or store had the acknowledgement of the publish step's message when a process died."""

    @classmethod
    def fresh(cls, seed: int, *, with_store: bool = False) -> Play:
        return cls(Surroundings.fresh(seed, with_store=with_store))

    def life(self, fuse: int = 0, *, counted: bool = True, branch: Callable[[int], bool] | None = None) -> bool:
        """Run one process until the play is over (True) or the process reaches its `fuse`-th await (False).

        `branch` decides at each await, by its number, whether the process dies there.
        """
        process = Process(self.around, counted=counted)
        process.host.loop.fuse, process.host.loop.branch = fuse, branch
        self.ask(process)
        try:
            self.moves(process, until=lambda: process.host.loop.stopped)
            return not process.host.loop.stopped
        finally:
            self.end(process)

    def end(self, process: Process) -> None:
        self.awaits.append(process.host.loop.awaits)
        self.problems += process.problems
        process.host.kill()

    def rest(self, seconds: float) -> None:
        """Let time pass without a process."""
        self.recorded = acknowledged(self.around)
        self.around.world.now += seconds
        self.away += seconds

    def moves(self, *processes: Process, until: Callable[[], bool] = lambda: False) -> None:
        """Make steps until all of these have ended, or `until` holds."""
        while not until() and not all(process.main.done() for process in processes):
            self.move(*processes)

    def move(self, *processes: Process) -> None:
        """Make one step of the world. After the end of a scene, begin the next one."""
        if self.scene < STOPPING and self._ended():
            self._next(processes)
        if not self.around.world.step():
            raise Stuck(f"{self.name}: nothing is left to happen")
        stream = self.around.nats.streams.get(CEREMONY)
        if stream is not None and len(stream.messages) > len(self.told_at):
            self.told_at.append(processes[0].host.loop.awaits)
        if self.around.nats.deliveries > len(self.heard_at):
            new = self.around.nats.deliveries - len(self.heard_at)
            self.heard_at += [processes[0].host.loop.awaits] * new
        if self.around.world.now - self.begun_at > PATIENCE_SECONDS:
            raise Stuck(f"{self.name}: not within {PATIENCE_SECONDS:g} s; {self.problems}")

    @property
    def name(self) -> str:
        return SCRIPT[self.scene].name if 0 <= self.scene < STOPPING else "the stop"

    def _ended(self) -> bool:
        if self.scene < 0:
            return True
        scene = SCRIPT[self.scene]
        answered = scene.call is None or scene.name in self.around.answers
        return answered and scene.leads_to(self.around) and at_rest(self.around)

    def _next(self, processes: Iterable[Process]) -> None:
        self.scene += 1
        self.around.world.next_tick(SCRIPT[self.scene].ticks if self.scene < STOPPING else 1)
        self.begun_at = self.around.world.now
        if self.scene < STOPPING:
            SCRIPT[self.scene].does(self.around)
        for process in processes:
            self.ask(process)

    def ask(self, process: Process) -> None:
        """Make the client's call of this scene, or ask the process to stop."""
        if self.scene == STOPPING:
            process.stop()
        elif self.scene >= 0 and (call := SCRIPT[self.scene].call) is not None:
            name = SCRIPT[self.scene].name
            if name not in self.around.answers:
                self.asked_at.append(process.host.loop.awaits)
                process.spawn(asks(process, name, call), f"client: {name}")


def uninterrupted(seed: int, *, counted: bool = True, with_store: bool = False) -> Play:
    play = Play.fresh(seed, with_store=with_store)
    play.life(counted=counted)
    return play


def killed(seed: int, fuses: Sequence[int], outage: float = 0.0, *, with_store: bool = False) -> Play:
    """Kill each process at its await of this number, if it reaches it; the last one lives.

    `outage`: seconds between a death and the next process.
    """
    play = Play.fresh(seed, with_store=with_store)
    for fuse in fuses:
        if play.life(fuse):
            return play
        play.rest(outage)
    play.life()
    return play


def branched(seed: int, branch: Callable[[int], bool], outage: float = 0.0) -> Play:
    """Kill a process once, where `branch` decides so."""
    play = Play.fresh(seed)
    if not play.life(branch=branch):
        play.rest(outage)
        play.life()
    return play


def overtaken(seed: int, fuse: int, lead: int, *, patient: bool = False) -> Play:
    """Freeze a process at an await, let another one take over and reach `lead` awaits, and wake the first.

    `patient`: NATS keeps the connection of the frozen process, and accepts the content of its buffers.
    """
    play = Play.fresh(seed)
    if patient:
        play.around.nats.stale_seconds = math.inf
    zombie, successor = Process(play.around), None
    zombie.host.loop.fuse = fuse
    try:
        play.moves(zombie, until=lambda: zombie.host.loop.stopped)
        zombie.host.freeze()
        play.recorded = acknowledged(play.around)
        successor = Process(play.around)
        play.ask(successor)
        play.moves(successor, until=lambda: successor.host.loop.awaits >= lead)
        play.away = play.around.world.now - zombie.host.frozen_at
        zombie.host.thaw()
        if play.scene == STOPPING:
            zombie.stop()
        play.moves(zombie, successor)
    finally:
        for process in (zombie, successor):
            if process is not None:
                play.end(process)
    return play
