"""One run: under load one fault after the other, and after each the checker accounts for everything so far."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.checker.check import check_run
from tests.checker.collect import collect_messages, settled_instances
from tests.checker.recording import Run, load_starts
from tests.checker.violations import Violation
from tests.faults.inject import Blow, Injector, wait_ready
from tests.faults.measure import accepted_at, first_after, longest_pause, stored_at
from tests.faults.plan import Fault, Plan
from tests.faults.world import FaultRunFailed, World
from tests.services import KafkaCluster, KafkaServer

SETTLE_SECONDS = 30.0
# The stream is complete after this time without a new message.
QUIET_SECONDS = 1.5
LOST = frozenset({"start_lost", "instance_missing", "end_lost", "publish_message_lost", "stream_gap", "stuck"})
DOUBLED = frozenset({"message_id_twice", "key_twice", "started_twice", "step_concluded_twice", "two_ends"})
# Violations that `republish` cannot mend: messages of publish steps are not in the log's events.
NOT_IN_EVENTS = frozenset({"publish_message_lost"})
# Messages on their way when a worker was killed are no sign of its recovery.
IN_FLIGHT_SECONDS = 0.3
SHOWN = 20

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Struck:
    """Recovery from one blow, in seconds."""

    down: float
    first_start: float | None
    """From the end of the outage to the first accepted start; None if the next blow came first."""
    first_event: float | None
    """The same for the first message stored in the stream CEREMONY."""


@dataclass(slots=True)
class Verdict:
    """Result of one fault: its blows and the checker's violations."""

    fault: Fault
    struck: list[Struck]
    starts: int
    """Starts accepted in this phase."""
    ended: dict[str, int]
    messages: int
    """Messages on the stream after this phase, including those of earlier phases."""
    longest_start_pause: float
    longest_event_pause: float
    drain: float
    """Seconds from the last start to the end of the last ceremony."""
    repeated_calls: int
    lost: int
    doubled: int
    violations: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.violations and not self.problems


class FaultRun:
    """A run of all faults of a plan, in order."""

    def __init__(self, plan: Plan, folder: Path, kafka: KafkaServer | KafkaCluster, tell: Tell) -> None:
        self._plan = plan
        self._world = World(folder, plan, kafka)
        self._tell = tell
        self._known: set[Violation] = set()
        self.last: Run | None = None
        """Records collected after the last fault."""

    def run(self, faults: Sequence[Fault]) -> list[Verdict]:
        dice = random.Random(self._plan.seed)
        self._tell(f"seed {self._plan.seed}; everything is in {self._world.folder}")
        with self._world:
            injector = Injector(self._world, dice)
            return [self._phase(fault, injector) for fault in faults]

    def _phase(self, fault: Fault, injector: Injector) -> Verdict:
        self._tell(f"{fault}: under load")
        began = time.time()
        load = self._world.load(fault.name.lower())
        blows = injector.inject(fault)
        wait_ready(self._world)
        stopped = time.time()
        self._tell(f"{fault}: waiting for the load to end")
        summary = load.finish()
        ended = time.time()
        wait_ready(self._world)
        self._tell(f"{fault}: checking")
        run = self._collect()
        verdict = self._verdict(fault, blows, summary, run, (began, stopped, ended))
        self._tell(f"{fault}: {verdict.starts} starts, {'sound' if verdict.sound else 'NOT SOUND'}")
        return verdict

    def _collect(self) -> Run:
        world = self._world
        starts = load_starts(world.starts.read_text().splitlines())
        instances = asyncio.run(settled_instances(world.worker.address, starts, SETTLE_SECONDS))
        messages = asyncio.run(collect_messages(world.nats.url, quiet_seconds=QUIET_SECONDS))
        self.last = Run(messages, world.definitions(), starts, instances)
        return self.last

    def _verdict(
        self,
        fault: Fault,
        blows: Sequence[Blow],
        summary: dict[str, Any],
        run: Run,
        span: tuple[float, float, float],
    ) -> Verdict:
        began, stopped, ended = span
        # A violation counts for the first phase that shows it.
        violations = [violation for violation in check_run(run) if violation not in self._known]
        self._known.update(violations)
        if fault is Fault.STREAM:
            violations = [violation for violation in violations if violation.rule not in NOT_IN_EVENTS]
        rules = Counter(violation.rule for violation in violations)
        accepted = [at for at in accepted_at(self._world.starts) if at >= began]
        stored = asyncio.run(stored_at(self._world.nats.url, began))
        return Verdict(
            fault=fault,
            struck=struck(blows, accepted, stored, ended),
            starts=len(accepted),
            ended=summary["ended"],
            messages=len(run.messages),
            longest_start_pause=longest_pause(accepted, began + 1, stopped).seconds,
            longest_event_pause=longest_pause(stored, began + 1, stopped).seconds,
            drain=ended - stopped,
            repeated_calls=summary["repeated_calls"],
            lost=sum(rules[rule] for rule in LOST),
            doubled=sum(rules[rule] for rule in DOUBLED),
            violations=[str(violation) for violation in violations[:SHOWN]],
            problems=[*_problems(blows, summary), *_few(accepted)],
        )


def struck(blows: Sequence[Blow], accepted: Sequence[float], stored: Sequence[float], ended: float) -> list[Struck]:
    """Return the recovery of each blow, up to the next."""
    found = []
    limits = [blow.began for blow in blows[1:]] + [ended]
    for blow, limit in zip(blows, limits, strict=True):
        ahead = limit - blow.over
        firsts = [first_after(times, blow.over + IN_FLIGHT_SECONDS) for times in (accepted, stored)]
        start, event = (None if s is None or s > ahead else round(s + IN_FLIGHT_SECONDS, 2) for s in firsts)
        found.append(Struck(round(blow.over - blow.began, 2), start, event))
    return found


def _problems(blows: Sequence[Blow], summary: dict[str, Any]) -> list[str]:
    found = [problem for blow in blows for problem in blow.problems]
    found += [f"refused: {refusal}" for refusal in summary["refusals"]]
    return found + [f"not ended in time: {instance_id}" for instance_id in summary["not_ended"]]


def _few(accepted: Sequence[float]) -> list[str]:
    return [] if accepted else ["nothing was started: this phase proves nothing"]


__all__ = ["FaultRun", "FaultRunFailed", "Struck", "Verdict"]
