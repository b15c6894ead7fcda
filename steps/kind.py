"""Base class of step kinds, with defaults for the hooks a kind does not use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from tables.definition import Definition, Gate, Step
from tables.instance import AgentAnswer
from tables.kinds import AtOnce, Decided, Failed, Publication, Source, StepContext, Verdict
from tables.limits import clip
from tables.templates import MarkKind, TemplateFailed, expressions, marks, render_text

# Characters of a template shown in a message.
SHOWN = 60


class Kind:
    """A kind without agents, gate and publication."""

    handler: str
    name: str
    config: type[BaseModel]
    reaches_out: bool = False
    fields: tuple[str, ...] = ()

    def templates(self, step: Step) -> Mapping[str, Any]:
        return {}

    def sources(self, step: Step) -> Iterable[Source]:
        return ()

    def inputs(self, step: Step) -> Iterable[str] | None:
        return ()

    def fills(self, step: Step, definition: Definition) -> Iterable[str]:
        return ()

    def advise(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        return ()

    def role(self, step: Step) -> str | None:
        return None

    def gate(self, step: Step) -> Gate | None:
        return None

    def agents(self, step: Step) -> tuple[str, ...]:
        return ()

    def prompts(self, step: Step) -> tuple[str, ...]:
        return ()

    def publication(self, step: Step, instance_id: str, visit: int) -> Publication | None:
        return None

    def check(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        for path, template in self.templates(step).items():
            yield from template_problems(path, template, definition)

    def steps_at_once(self, body: Any, row_size: int, left: int) -> int:
        return 0

    def at_once(self, body: Any) -> AtOnce | None:
        return None

    def accepts(self, context: StepContext, agent_id: str) -> bool:
        return False

    def completed(self, context: StepContext, output: Any) -> Verdict:
        return self._unexpected("the outcome `completed`")

    def gathered(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        return self._unexpected("an agent's result")

    def timed_out(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        return Failed("timeout", f"no outcome came within {context.step.timeout_seconds:g} s")

    def decided(self, context: StepContext, decision: Decided) -> Verdict:
        return Failed("not_a_gate", f"step `{context.step.id}` is a {self.handler}, not a gate", retryable=False)

    def _unexpected(self, outcome: str) -> Failed:
        """Fail on a forged or misrouted outcome."""
        return Failed("unexpected_outcome", f"a {self.handler} cannot end with {outcome}", retryable=False)


def template_problems(path: str, template: Any, definition: Definition) -> Iterable[tuple[str, str, str]]:
    """Yield violations of a template: a step that the definition does not have, a placeholder that is not closed."""
    for expression in expressions(template):
        if expression.root == "steps" and expression.name not in definition.steps:
            yield path, "unknown_step", f"${{{expression}}}: there is no step `{expression.name}` in this definition"
    for mark in marks(template):
        if mark.kind is MarkKind.UNCLOSED:
            message = f"`{clip(mark.text, SHOWN)}` has no `}}`; a literal `${{` is written `$${{`"
            yield path, "template_unclosed", message


def rendered(context: StepContext, template: str) -> str:
    """Render a text of the definition. Raises TemplateFailed."""
    return render_text(template, context.instance.inputs, context.output, context.definition.optional_inputs)


def unrendered(error: TemplateFailed) -> Failed:
    """Return the failure of a template; a retry would fail again."""
    code = "request_too_large" if error.code == "template_too_large" else error.code
    return Failed(code, error.message, retryable=False)
