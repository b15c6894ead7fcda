"""Base class of step kinds, with defaults for the hooks a kind does not use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from tables.definition import Definition, Gate, Step
from tables.instance import AgentAnswer
from tables.kinds import AtOnce, Decided, Failed, Publication, StepContext, Verdict
from tables.templates import expressions


class Kind:
    """A kind without agents, gate and publication."""

    handler: str
    name: str
    config: type[BaseModel]
    reaches_out: bool = False

    def role(self, step: Step) -> str | None:
        return None

    def gate(self, step: Step) -> Gate | None:
        return None

    def agents(self, step: Step) -> tuple[str, ...]:
        return ()

    def publication(self, step: Step, instance_id: str, visit: int) -> Publication | None:
        return None

    def check(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        return ()

    def at_once(self, body: Any) -> AtOnce | None:
        return None

    def accepts(self, context: StepContext, agent_id: str) -> bool:
        return False

    def completed(self, context: StepContext, output: Any) -> Verdict:
        return self._unexpected("completed")

    def gathered(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        return self._unexpected("an agent's result")

    def timed_out(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        return Failed("timeout", f"no outcome within {context.step.timeout_seconds:g} s")

    def decided(self, context: StepContext, decision: Decided) -> Verdict:
        return Failed("not_a_gate", f"`{context.step.id}` is a {self.handler}, no gate", retryable=False)

    def _unexpected(self, outcome: str) -> Failed:
        """Fail on a forged or misrouted outcome."""
        return Failed("unexpected_outcome", f"a {self.handler} is not concluded by {outcome}", retryable=False)


def unknown_steps(path: str, template: Any, definition: Definition) -> Iterable[tuple[str, str, str]]:
    """Yield violations of a template that names a step which the definition does not have."""
    for expression in expressions(template):
        if expression.root == "steps" and expression.name not in definition.steps:
            yield path, "unknown_step", f"${{{expression}}}: there is no step `{expression.name}` in this definition"
