"""The health of a worker: the state of each neighbour, whether it has started, whether it takes new work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ceremony.neighbour import Neighbour
from ports.clock import Clock
from ports.health import OK, NeighbourHealth

# A worker has started once it has reached these, as far as its roles need them.
STARTED = ("log", "tables")


class Readiness:
    """Implements `ports.health.WorkerHealth`. All that shows health reads it here."""

    def __init__(
        self,
        neighbours: Sequence[Neighbour],
        required: Sequence[str],
        clock: Clock,
        *,
        warnings: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`required`: the names of the neighbours that decide readiness; `warnings`: shortcomings that do not."""
        self.required = required
        self._neighbours = neighbours
        self._warnings = warnings
        self._clock = clock
        self._started = False
        self._draining = False

    def neighbours(self) -> dict[str, NeighbourHealth]:
        return {one.name: one.health() for one in self._neighbours}

    def states(self) -> dict[str, str]:
        """State of each neighbour that a role of this worker needs: `ok`, or the reason why not."""
        return {name: health.state for name, health in self.neighbours().items()}

    @property
    def status(self) -> str:
        if self._draining:
            return "draining"
        return "ready" if self.is_ready else "not ready"

    @property
    def is_ready(self) -> bool:
        return not self._draining and self._are_ok(self.required)

    @property
    def is_started(self) -> bool:
        """Stays true: a worker that has recovered once is never restarted because a neighbour is away."""
        self._started = self._started or self._are_ok(self.needed_to_start)
        return self._started

    @property
    def needed_to_start(self) -> Sequence[str]:
        return [one.name for one in self._neighbours if one.name in STARTED]

    def _are_ok(self, names: Sequence[str]) -> bool:
        codes = {name: health.code for name, health in self.neighbours().items()}
        return all(codes.get(name) == OK for name in names)

    def drain(self) -> None:
        """Take no new work from now on."""
        self._draining = True

    @property
    def is_draining(self) -> bool:
        return self._draining

    def warnings(self) -> Sequence[str]:
        """Shortcomings that do not end readiness."""
        return self._warnings()

    async def probe(self) -> None:
        """Probe all neighbours at the same time."""
        probes = [self._clock.spawn(one.probe(), name=f"probe-{one.name}") for one in self._neighbours]
        try:
            await asyncio.wait(probes)
        finally:
            for probe in probes:
                probe.cancel()
        for probe in probes:
            probe.result()
