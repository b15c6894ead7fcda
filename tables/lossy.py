"""Redacted texts that a restored ceremony would still read: a step would work with `[redacted:…]` instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tables.definition import Definition, Step
from tables.definitions.references import of_guards, of_sources, of_templates
from tables.guards import Cel
from tables.instance import CeremonyStatus, Instance, StepStatus
from tables.kinds import Kinds

# `$.inputs.<name>…` or `$.step_outputs.<step>…`; a name in another form may be any.
_PATH = re.compile(r"\$\.(inputs|step_outputs)(?:\.([A-Za-z0-9_]+))?")
_ANY = ""
# Endings that nothing opens again: no step will read anything.
_FINAL = frozenset({CeremonyStatus.COMPLETED, CeremonyStatus.CANCELLED})


class _Redacted(NamedTuple):
    """Names of the inputs and of the steps with redacted texts; `_ANY` among them stands for each."""

    inputs: frozenset[str]
    outputs: frozenset[str]

    @classmethod
    def of(cls, paths: Iterable[str]) -> _Redacted:
        found: dict[str, set[str]] = {"inputs": set(), "step_outputs": set()}
        for path in paths:
            if match := _PATH.match(path):
                found[match[1]].add(match[2] or _ANY)
        return cls(frozenset(found["inputs"]), frozenset(found["step_outputs"]))

    def has_input(self, name: str) -> bool:
        return bool(name) and (name in self.inputs or _ANY in self.inputs)

    def has_output(self, step_id: str) -> bool:
        return bool(step_id) and (step_id in self.outputs or _ANY in self.outputs)


def still_read(row: Instance, definition: Definition, kinds: Kinds, paths: Iterable[str]) -> list[str]:
    """List the reasons why the row is lossy, in words: the redacted texts that a later step or guard may read."""
    redacted = _Redacted.of(paths)
    if row.status in _FINAL or not (redacted.inputs or redacted.outputs):
        return []
    ahead = _states_ahead(row, definition)
    found = [
        f"step {step.id} reads {name}"
        for step in definition.steps.values()
        if _may_run(step, row, ahead)
        for name in _read_by(step, definition, kinds, redacted)
    ]
    guards = {
        name
        for state in (row.state, *ahead)
        for transition in definition.transitions_from.get(state, ())
        for name in transition.guards
    }
    found += [f"guard {name} reads {text}" for name, text in _read_by_guards(definition, redacted) if name in guards]
    return list(dict.fromkeys(found))


def _states_ahead(row: Instance, definition: Definition) -> tuple[str, ...]:
    """Return the states that can be entered from here, in file order; the present one only where it can be again."""
    ahead: set[str] = set()
    waiting = [row.state]
    while waiting:
        for transition in definition.transitions_from.get(waiting.pop(), ()):
            if transition.to_state not in ahead:
                ahead.add(transition.to_state)
                waiting.append(transition.to_state)
    return tuple(state for state in definition.states if state in ahead)


def _may_run(step: Step, row: Instance, ahead: tuple[str, ...]) -> bool:
    here = step.state == row.state and row.steps[step.id].status is not StepStatus.COMPLETED
    return here or step.state in ahead


def _read_by(step: Step, definition: Definition, kinds: Kinds, redacted: _Redacted) -> Iterator[str]:
    beside = kinds[step.handler].inputs(step)
    if beside is None and redacted.inputs:
        yield "the inputs"
    for name in beside or ():
        if redacted.has_input(name):
            yield f"the input {name}"
    for reference in (*of_templates(step, kinds), *of_sources(step, definition, kinds)):
        if redacted.has_output(reference.step):
            yield f"the output of {reference.step}"
        elif redacted.has_input(reference.input):
            yield f"the input {reference.input}"


def _read_by_guards(definition: Definition, redacted: _Redacted) -> Iterator[tuple[str, str]]:
    for name, reference in of_guards(definition):
        if redacted.has_output(reference.step):
            yield name, f"the output of {reference.step}"
        elif redacted.has_input(reference.input):
            yield name, f"the input {reference.input}"
    for name, guard in definition.guards.items():
        if isinstance(guard.expression, Cel):
            reads = guard.expression.expression.reads
            if redacted.inputs and reads.get("inputs", {}) is None:
                yield name, "the inputs"
            if redacted.outputs and reads.get("outputs", {}) is None:
                yield name, "the outputs"
