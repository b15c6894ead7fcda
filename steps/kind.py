"""The base of the step kinds: what a kind answers to whatever does not concern it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from tables.definition import Definition, Gate, Step
from tables.instance import AgentAnswer
from tables.kinds import AtOnce, Decided, Failed, Publication, StepContext, Verdict
from tables.templates import expressions


class Kind:
    """A kind without agents and without a gate, whose own agent concludes nothing."""

    handler: str
    name: str
    config: type[BaseModel]
    reaches_out: bool = False

    def role(self, step: Step) -> str | None:
        """It needs none."""
        return None

    def gate(self, step: Step) -> Gate | None:
        """It is none."""
        return None

    def agents(self, step: Step) -> tuple[str, ...]:
        """It counts the answers of none."""
        return ()

    def publication(self, step: Step, instance_id: str, visit: int) -> Publication | None:
        """It sends none."""
        return None

    def check(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        """The config model says it all."""
        return ()

    def at_once(self, body: Any) -> AtOnce | None:
        """The world has to be asked."""
        return None

    def accepts(self, context: StepContext, agent_id: str) -> bool:
        """No agent is asked."""
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
        """A forged or misrouted outcome."""
        return Failed("unexpected_outcome", f"a {self.handler} is not concluded by {outcome}", retryable=False)


def unknown_steps(path: str, template: Any, definition: Definition) -> Iterable[tuple[str, str, str]]:
    """Violations of a template that names a step the definition does not have."""
    for expression in expressions(template):
        if expression.root == "steps" and expression.name not in definition.steps:
            yield path, "unknown_step", f"${{{expression}}}: there is no step `{expression.name}` in this definition"
