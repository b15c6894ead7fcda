"""The people of the demo: they approve open gates, and fire a trigger where nothing else moves a ceremony."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient, PlanningCeremonyError
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from ceremony.demo.stream import Seen
from ports.clock import Clock
from tables.definition import Definition, GuardType

# People who decide at the same time.
PEOPLE = 16
# Decisions in a row on one ceremony. More would mean that it runs in a loop.
LONGEST_VISIT = 50
SWEEP_SECONDS = 1.0
# Prefixes of the lines of `waiting_for` that need no trigger.
BUSY = ("step ", "timer ", "paused")


class People:
    """Decides on ceremonies. `notice` takes each message of the stream; a sweep finds those that wait silently."""

    def __init__(
        self,
        client: AsyncPlanningCeremonyClient,
        clock: Clock,
        definitions: Mapping[str, Definition],
        live: Callable[[], Iterable[str]],
    ) -> None:
        """`live`: ids of the ceremonies that have started and not ended."""
        self._client = client
        self._clock = clock
        self._definitions = definitions
        self._live = live
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._changed: dict[str, float] = {}
        self._seen_version: dict[str, int] = {}
        self.decisions = 0
        self.triggers = 0
        self.refusals: list[str] = []
        """Refused decisions, except those where another person or a timer was faster."""

    def notice(self, seen: Seen) -> None:
        self._changed[seen.correlation_id] = self._clock.monotonic()
        if seen.subject == "ceremony.gate.opened" or self._opens_guard(seen):
            self._call(seen.correlation_id)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Start them; they run until they are cancelled."""
        spawn = self._clock.spawn
        return [spawn(self._decide_all(), name=f"person-{n}") for n in range(PEOPLE)] + [
            spawn(self._sweep(), name="sweep")
        ]

    def _opens_guard(self, seen: Seen) -> bool:
        """Return whether a human guard waits now. It emits no event: it waits as soon as its state is entered."""
        if seen.subject not in ("ceremony.transition.applied", "ceremony.started"):
            return False
        definitions = self._definitions.values()
        state = seen.payload.get("to_state") or seen.payload.get("current_state")
        guards = (
            definition.guards[name]
            for definition in definitions
            for transition in definition.transitions_from.get(str(state), ())
            for name in transition.guards
        )
        return any(guard.type is GuardType.HUMAN for guard in guards)

    def _call(self, instance_id: str) -> None:
        if instance_id not in self._queued:
            self._queued.add(instance_id)
            self._queue.put_nowait(instance_id)

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            now = self._clock.monotonic()
            for instance_id in self._live():
                if now - self._changed.get(instance_id, now) >= SWEEP_SECONDS:
                    self._call(instance_id)
                self._changed.setdefault(instance_id, now)

    async def _decide_all(self) -> None:
        while True:
            instance_id = await self._queue.get()
            self._queued.discard(instance_id)
            try:
                await self._attend(instance_id)
            except PlanningCeremonyError as error:
                if error.status.name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION"):
                    self.refusals.append(f"{instance_id}: {error.message}")

    async def _attend(self, instance_id: str) -> None:
        found = await self._client.get(instance_id)
        for _ in range(LONGEST_VISIT):
            if found is None or not found.open_gates:
                break
            found = await self._approve(found, found.open_gates[0])
        else:
            return
        if found is not None and self._needs_trigger(found):
            await self._push(found)

    async def _approve(self, found: pb.PlanningCeremonyInstance, gate: pb.OpenGate) -> pb.PlanningCeremonyInstance:
        self.decisions += 1
        return await self._client.decide(
            found.instance_id,
            approved=True,
            # A quorum counts distinct actors.
            actor=f"demo-{(gate.role or 'person').lower()}-{gate.approvals + 1}",
            role=gate.role,
            step_id=gate.step_id or None,
            guard=gate.guard or None,
            visit=gate.visit,
            comment="approved by the demo",
        )

    def _needs_trigger(self, found: pb.PlanningCeremonyInstance) -> bool:
        """Return whether it runs, waits for no step or timer, and has not changed since the last look."""
        before = self._seen_version.get(found.instance_id)
        self._seen_version[found.instance_id] = found.version
        busy = any(line.startswith(BUSY) for line in found.waiting_for)
        return before == found.version and found.status == "RUNNING" and not busy

    async def _push(self, found: pb.PlanningCeremonyInstance) -> None:
        """Fire the first trigger that the engine accepts, in an allowed role."""
        definition = self._definitions[found.definition_name]
        for transition in definition.transitions_from.get(found.current_state, ()):
            role = next(
                (role.id for role in definition.roles.values() if transition.trigger in role.allowed_actions), ""
            )
            try:
                await self._client.trigger(found.instance_id, transition.trigger, actor="demo", role=role)
            except PlanningCeremonyError as error:
                if error.status.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                    raise
                continue
            self.triggers += 1
            return
