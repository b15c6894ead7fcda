"""The health of a worker as a test says it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ports.health import OK, NeighbourHealth


class SaidHealth:
    """Implements `WorkerHealth`; `states` by neighbour are `ok` or the trouble, and every test may change them."""

    def __init__(
        self, states: Mapping[str, str] | None = None, required: Sequence[str] = (), warnings: Sequence[str] = ()
    ) -> None:
        self.states = dict(states or {})
        self.required = required
        self.needed_to_start = ("log",)
        self.is_started = True
        self.is_draining = False
        self._warnings = warnings

    @property
    def is_ready(self) -> bool:
        return not self.is_draining and all(self.states.get(name) == OK for name in self.required)

    @property
    def status(self) -> str:
        return "draining" if self.is_draining else "ready" if self.is_ready else "not ready"

    def neighbours(self) -> Mapping[str, NeighbourHealth]:
        return {name: health_of(state) for name, state in self.states.items()}

    def warnings(self) -> Sequence[str]:
        return self._warnings


def health_of(state: str) -> NeighbourHealth:
    return NeighbourHealth(OK if state == OK else "away", state, since=0)
