"""The gates and human guards of a ceremony that people can decide now, in definition order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from tables.definition import Definition, Guard, GuardType, Step
from tables.instance import CeremonyStatus, Phase

LIVE = frozenset({CeremonyStatus.RUNNING, CeremonyStatus.WAITING_FOR_HUMAN, CeremonyStatus.PAUSED})


class Phased(Protocol):
    """The part of a step's state that is read here."""

    @property
    def phase(self) -> Phase: ...


class GatedRow(Protocol):
    """The part of a row that is read here."""

    @property
    def state(self) -> str: ...
    @property
    def status(self) -> CeremonyStatus: ...
    @property
    def steps(self) -> Mapping[str, Phased]: ...
    @property
    def guard_approvals(self) -> Mapping[str, Any]: ...


def open_gate_steps(row: GatedRow, definition: Definition) -> Iterator[Step]:
    """Iterate over the steps of the current state whose gate is open."""
    if row.status in LIVE:
        for step in definition.steps_by_state.get(row.state, ()):
            state = row.steps.get(step.id)
            if step.gate is not None and state is not None and state.phase is Phase.GATE:
                yield step


def open_human_guards(row: GatedRow, definition: Definition) -> Iterator[Guard]:
    """Iterate over the unsatisfied human guards of transitions that leave the current state, each once."""
    if row.status in LIVE:
        names = (name for one in definition.transitions_from.get(row.state, ()) for name in one.guards)
        for name in dict.fromkeys(names):
            guard = definition.guards[name]
            if guard.type is GuardType.HUMAN and not row.guard_approvals.get(name):
                yield guard
