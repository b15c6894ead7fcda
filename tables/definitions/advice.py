"""Warnings of `validate`: mistakes of a valid definition that may, and may not, do harm."""

from __future__ import annotations

from collections.abc import Iterator

from tables.definition import Definition, Guard, GuardType, Step
from tables.definitions import references
from tables.definitions.order import StepOrder
from tables.definitions.problems import ProblemList
from tables.definitions.references import Finding
from tables.definitions.yaml_source import Node, parse
from tables.errors import Problem
from tables.guards import StepStatusIs
from tables.instance import StepStatus
from tables.kinds import Kinds
from tables.roles import step_role_refusal


def warnings(definition: Definition, kinds: Kinds, file: str = "") -> list[Problem]:
    """List the warnings, in file order. `file` is the name in the messages; by default that of the definition."""
    report = ProblemList(file or f"{definition.name}.yaml")
    lines = _Lines(definition)
    order = StepOrder(definition)
    for step in definition.steps.values():
        for finding in _of_step(step, definition, kinds, order):
            report.add(step.line, finding.rule, f"step `{step.id}`: {finding.message}")
    for guard in definition.guards.values():
        for finding in _of_guard(guard):
            report.add(lines.of("guards", guard.name), finding.rule, f"guard `{guard.name}`: {finding.message}")
    for name, reference in references.of_guards(definition):
        for finding in references.undeclared(reference, definition, kinds):
            report.add(lines.of("guards", name), finding.rule, f"guard `{name}`: {finding.message}")
    filled = {name for step in definition.steps.values() for name in kinds[step.handler].fills(step, definition)}
    for name in definition.outputs.keys() - filled:
        message = f"output `{name}`: no publish step fills it, so nothing checks it; name it in `output` of one"
        report.add(lines.of("outputs", name), "output_unfilled", message)
    for state, message in _without_success(definition):
        report.add(lines.of_state(state), "no_way_of_success", message)
    return list(report.problems())


def _of_step(step: Step, definition: Definition, kinds: Kinds, order: StepOrder) -> Iterator[Finding]:
    refused = step_role_refusal(definition, step)
    if refused is not None:
        yield Finding(refused[0], f"{refused[1]}: the step will fail with `{refused[0]}`")
    yield from references.odd_marks(step, kinds)
    yield from references.maybe_there(step, definition, kinds, order)
    for reference in references.of_templates(step, kinds):
        yield from references.undeclared(reference, definition, kinds)
    for reference in references.of_sources(step, definition, kinds):
        yield from references.undeclared(reference, definition, kinds)
    for _, rule, message in kinds[step.handler].advise(step, definition):
        yield Finding(rule, message)


def _of_guard(guard: Guard) -> Iterator[Finding]:
    if guard.type is GuardType.HUMAN:
        if guard.role is None:
            yield Finding("guard_without_role", "it has no `role`: anybody may approve it")
        return
    check = guard.expression
    under_way = isinstance(check, StepStatusIs) and check.status is StepStatus.IN_PROGRESS
    if under_way or (not isinstance(check, StepStatusIs) and StepStatus.IN_PROGRESS in guard.check):
        message = "no transition is judged when a step begins or tries again, so IN_PROGRESS is seen by chance only"
        yield Finding("guard_over_in_progress", message)


def _without_success(definition: Definition) -> Iterator[tuple[str, str]]:
    """Yield the states whose steps can succeed and then lead nowhere by themselves."""
    for state, steps in definition.steps_by_state.items():
        if steps and not definition.automatic_from[state]:
            message = f"state `{state}`: each way out is taken on a failure only; where its steps succeed, it fails"
            yield state, message


class _Lines:
    """Lines of the sections of a definition's text."""

    def __init__(self, definition: Definition) -> None:
        self._root = parse(definition.text, ProblemList("")) or Node(1, "map")

    def of(self, section: str, name: str) -> int:
        """Return the line of a named entry."""
        return self._root.line_at(iter((section, name)))

    def of_state(self, state: str) -> int:
        states = self._root.entries.get("states", self._root)
        found = (node for node in states.items if "id" in node.entries and node.entries["id"].value == state)
        return next(found, states).line
