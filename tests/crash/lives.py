"""One ceremony played through by processes that are killed at given awaits, or frozen while another takes over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bridge.nats.streams import CEREMONY
from tests.crash.process import Process, Surroundings
from tests.crash.script import PATIENCE_SECONDS, SCRIPT, asks, at_rest

STOPPING = len(SCRIPT)


class Stuck(AssertionError):
    """A scene did not come to its end: something was lost, or waits for ever."""


@dataclass
class Play:
    """The script as far as it has come; it goes on with whichever process there is."""

    around: Surroundings
    scene: int = -1
    begun_at: float = 0.0
    awaits: list[int] = field(default_factory=list)
    """Of each process that ended, the awaits it came to."""
    problems: list[str] = field(default_factory=list)
    told_at: list[int] = field(default_factory=list)
    """Awaits of the process when CEREMONY got a message: its acknowledgement is under way."""
    heard_at: list[int] = field(default_factory=list)
    """Awaits of the process when messages were delivered to it."""
    asked_at: list[int] = field(default_factory=list)
    """Awaits of the process when a client called it."""
    away: float = 0.0
    """Seconds for which there was no process, or one stood still."""

    @classmethod
    def fresh(cls, seed: int) -> Play:
        return cls(Surroundings.fresh(seed))

    def life(self, fuse: int = 0, *, counted: bool = True, branch: Callable[[int], bool] | None = None) -> bool:
        """One process, until the play is over (True) or the process has come to its `fuse`-th await (False).

        `branch`: says of each await whether it comes no further.
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

    def moves(self, *processes: Process, until: Callable[[], bool] = lambda: False) -> None:
        """Move on until all of these have ended, or something else is so."""
        while not until() and not all(process.main.done() for process in processes):
            self.move(*processes)

    def move(self, *processes: Process) -> None:
        """One step of the world, and where a scene has ended, the beginning of the next one."""
        if self.scene < STOPPING and self._ended():
            self._next(processes)
        if not self.around.world.step():
            raise Stuck(f"{self.name}: nothing will ever happen any more")
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
        """What a process hears from outside in this scene: a client's call, or that it is to stop."""
        if self.scene == STOPPING:
            process.stop()
        elif self.scene >= 0 and (call := SCRIPT[self.scene].call) is not None:
            name = SCRIPT[self.scene].name
            if name not in self.around.answers:
                self.asked_at.append(process.host.loop.awaits)
                process.spawn(asks(process, name, call), f"client: {name}")


def uninterrupted(seed: int, *, counted: bool = True) -> Play:
    play = Play.fresh(seed)
    play.life(counted=counted)
    return play


def killed(seed: int, fuses: Sequence[int], outage: float = 0.0) -> Play:
    """Each process is killed at its await of this number, if it comes so far; the last one lives.

    `outage`: seconds between a death and the next process.
    """
    play = Play.fresh(seed)
    for fuse in fuses:
        if play.life(fuse):
            return play
        play.around.world.now += outage
        play.away += outage
    play.life()
    return play


def branched(seed: int, branch: Callable[[int], bool], outage: float = 0.0) -> Play:
    """As `killed` once, where `branch` says so."""
    play = Play.fresh(seed)
    if not play.life(branch=branch):
        play.around.world.now += outage
        play.away += outage
        play.life()
    return play


def overtaken(seed: int, fuse: int, lead: int, *, patient: bool = False) -> Play:
    """A process is frozen at an await; another takes over and comes to `lead` awaits; the frozen one goes on.

    `patient`: NATS keeps the connection of the frozen one, and takes what it had in its buffers.
    """
    play = Play.fresh(seed)
    if patient:
        play.around.nats.stale_seconds = math.inf
    zombie, successor = Process(play.around), None
    zombie.host.loop.fuse = fuse
    try:
        play.moves(zombie, until=lambda: zombie.host.loop.stopped)
        zombie.host.freeze()
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
