"""The proof: every play, however its processes die, ends as the uninterrupted one does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise

from streams.topics import COMMANDS, prefixed
from tables.commands import StepOutcome, decode_command
from tests.crash.branches import branches
from tests.crash.defects import HEARING, ZOMBIES
from tests.crash.lives import Play, Stuck, branched, killed, overtaken, uninterrupted
from tests.crash.outcome import Outcome, check_contract, outcome, violations
from tests.crash.process import PREFIX
from tests.crash.script import completed
from tests.crash.tracing import Traced, traced

# A description of the deaths in a play, and the problems at its end.
Plays = Iterator[tuple[str, list[str]]]
# Seconds: longer than CEREMONY's duplicate window, shorter than a tick.
LONG_OUTAGE = 900.0
# From the arrival of a message until its bridge sends the next one.
PUBLISHING_AWAITS = 2
# From the delivery of an answer, or from a client's call, to a durable command; approximate.
HEARING_AWAITS = 12


@dataclass
class Report:
    """The results of a number of plays."""

    plays: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)
    """Problems, by the description of the deaths."""

    def __str__(self) -> str:
        lines = [f"  {where}: {what}" for where, problems in self.found.items() for what in problems]
        return "\n".join([f"{self.plays} plays, {len(self.found)} wrong", *lines[:20]])


class Proof:
    """All plays of one seed. `with_store`: the processes have an idempotency store beside them."""

    def __init__(self, seed: int, *, with_store: bool = False) -> None:
        self.seed = seed
        self._with_store = with_store
        self._chance = random.Random(f"points of {seed}")

    @cached_property
    def whole(self) -> Play:
        """The uninterrupted play."""
        return uninterrupted(self.seed, with_store=self._with_store)

    @cached_property
    def wanted(self) -> Outcome:
        check_contract(self.whole.around)
        return outcome(self.whole.around)

    @property
    def points(self) -> int:
        """Awaits at which the one process of the uninterrupted play waited."""
        return self.whole.awaits[0]

    def trace(self) -> Traced:
        """The uninterrupted play under Python's tracing, without counts of the loop."""
        return traced(lambda: uninterrupted(self.seed, counted=False))

    @cached_property
    def deaths(self) -> list[int]:
        """The awaits at which a kill differs from a kill at the await before.

        Between the two the process sent or received something, or time passed. Otherwise the world cannot tell them
        apart.
        """
        play, moments = Play.fresh(self.seed, with_store=self._with_store), list[object]([None])

        def note(_: int) -> bool:
            moments.append((play.around.world.moment, len(play.around.answers)))
            return False

        play.life(branch=note)
        return [number for number, (before, now) in enumerate(pairwise(moments), 1) if now != before]

    def every(self) -> Plays:
        """Plays with one kill, at every await. This process forks at each."""
        points = range(1, self.points + 1)
        found = branches(points, lambda branch: self._judged(partial(branched, self.seed, branch)))
        assert list(found) == list(points)
        for fuse, problems in found.items():
            yield f"killed at {fuse}", problems

    def away(self, stride: int, offset: int) -> Plays:
        """Plays with one kill, at every `stride`-th death, and an outage longer than the duplicate window."""
        for fuse in self.deaths[offset::stride]:
            yield f"killed at {fuse}", self._judged(partial(killed, self.seed, [fuse], LONG_OUTAGE))

    def away_while_publishing(self) -> Plays:
        """Plays with one kill, at each death since the decision that starts the publish step, and the long outage."""
        for fuse in self.deaths:
            if fuse >= self.whole.asked_at[-1]:
                away = partial(killed, self.seed, [fuse], LONG_OUTAGE, with_store=self._with_store)
                yield f"killed at {fuse}", self._judged(away)

    def shuffled(self) -> Plays:
        """Plays with one kill at each of the deaths, in random order, to find a defect soon."""
        for fuse in self._chance.sample(self.deaths, len(self.deaths)):
            yield f"killed at {fuse}", self._judged(partial(killed, self.seed, [fuse]))

    def hearing(self) -> Plays:
        """Plays with one kill, at the awaits after a delivered message or a client's call, in random order."""
        heard = [*self.whole.heard_at, *self.whole.asked_at]
        fuses = {at + more for at in heard for more in range(HEARING_AWAITS + 1)} & {*self.deaths}
        for fuse in self._chance.sample(sorted(fuses), len(fuses)):
            yield f"killed at {fuse}", self._judged(partial(killed, self.seed, [fuse]))

    def pairs(self, count: int) -> Plays:
        """Plays with two kills, at random awaits."""
        for _ in range(count):
            fuses = [self._chance.randint(1, self.points), self._chance.randint(1, self.points)]
            yield f"killed at {fuses}", self._judged(partial(killed, self.seed, fuses))

    def zombies(self, count: int, *, publishing: bool = False) -> Plays:
        """Plays in which a process is frozen at random and woken when its successor has made progress, or has ended.

        NATS keeps the connection of every second one. `publishing`: of all, and they are frozen while they publish.
        """
        for number in range(count):
            fuse = self._while_publishing() if publishing else self._chance.randint(1, self.points - 1)
            lead = self._chance.randint(1, self.points - fuse + 100)
            patient = publishing or bool(number % 2)
            name = f"frozen at {fuse}, woken after {lead}{', its connection kept' if patient else ''}"
            yield name, self._judged(partial(overtaken, self.seed, fuse, lead, patient=patient), may_differ=True)

    def finding(self, defect: str) -> Plays:
        """Plays of which some must show this defect, the most likely ones first."""
        if defect in ZOMBIES:
            return self.zombies(400, publishing=True)
        return self.hearing() if defect in HEARING else self.shuffled()

    def _while_publishing(self) -> int:
        """A random await between the arrival of a message and the send of the next one."""
        return self._chance.choice(self.whole.told_at) + self._chance.randint(0, PUBLISHING_AWAITS)

    def _judged(self, play: Callable[[], Play], *, may_differ: bool = False) -> list[str]:
        try:
            played = play()
        except Stuck as stuck:
            return [f"stuck: {stuck}"]
        problems = violations(played)
        if may_differ and unreachable(played):
            return problems if completed(played.around) else [*problems, "it did not come to its end"]
        return problems + outcome(played.around).differences(self.wanted)


def unreachable(play: Play) -> bool:
    """Return whether a woken zombie could not reach a neighbour, which gives a different but valid log."""
    around = play.around
    return any(
        isinstance(command, StepOutcome) and command.outcome == "unreachable"
        for number in range(around.broker.partitions)
        for record in around.broker.records[prefixed(PREFIX, COMMANDS), number]
        for command in [decode_command(record.value)]
    )


def report(plays: Plays, *, enough: int = 0) -> Report:
    """Play them all, or until `enough` plays had problems."""
    done = Report()
    for name, problems in plays:
        done.plays += 1
        if problems:
            done.found[name] = problems
            if enough and len(done.found) >= enough:
                break
    return done


def strided(seed: int, points: int, budget: int) -> tuple[int, int]:
    """Stride and offset that select at most `budget` of so many points, different ones for each seed."""
    stride = max(1, -(-points // budget))
    return stride, seed % stride
