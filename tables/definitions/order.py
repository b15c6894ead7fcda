"""The order of steps: whether one can have completed before another starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from enum import Enum
from graphlib import CycleError, TopologicalSorter

from tables.definition import Definition


class Precedence(Enum):
    NEVER = "never"
    MAYBE = "maybe"
    """Nothing orders the two: they run side by side."""
    BEFORE = "before"
    """By the order of steps or of states."""


class StepOrder:
    """The order of the steps of one definition; `after` without a cycle, else everything may be."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._number = {name: number for number, name in enumerate(definition.steps)}
        self._before = _predecessors(definition, self._number)
        self._following: Mapping[str, list[str]] = _following(definition)
        self._reached: dict[str, set[str]] = {}

    def of(self, source: str, step: str) -> Precedence:
        """Return whether `source` can have completed when `step` starts. Entering a state drops its outputs."""
        first, second = self._definition.steps[source], self._definition.steps[step]
        if source == step:
            return Precedence.NEVER
        if first.state != second.state:
            return Precedence.BEFORE if second.state in self._reach(first.state) else Precedence.NEVER
        if self._waits(step, source):
            return Precedence.BEFORE
        return Precedence.NEVER if self._waits(source, step) else Precedence.MAYBE

    def _waits(self, step: str, other: str) -> bool:
        """Return whether a step waits for another, directly or through others."""
        return bool(self._before.get(step, 0) >> self._number[other] & 1)

    def _reach(self, state: str) -> set[str]:
        if state not in self._reached:
            found: set[str] = set()
            waiting = [state]
            while waiting:
                for after in self._following.get(waiting.pop(), ()):
                    if after not in found:
                        found.add(after)
                        waiting.append(after)
            self._reached[state] = found
        return self._reached[state]


def _predecessors(definition: Definition, number: Mapping[str, int]) -> dict[str, int]:
    """Return all steps that each step waits for, a bit for each; empty where `after` has a cycle."""
    after = {name: [other for other in step.after if other in number] for name, step in definition.steps.items()}
    found: dict[str, int] = {}
    try:
        for name in TopologicalSorter(after).static_order():
            bits = 0
            for other in after[name]:
                bits |= found[other] | 1 << number[other]
            found[name] = bits
    except CycleError:
        return {}
    return found


def _following(definition: Definition) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for transition in definition.transitions:
        found[transition.from_state].append(transition.to_state)
    return found
