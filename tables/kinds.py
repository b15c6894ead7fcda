"""The protocol of step kinds. The loader and `decide` take the registry of kinds as an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import msgspec
from pydantic import BaseModel

from tables.definition import Definition, Gate, Step
from tables.instance import AgentAnswer, Approval, StepState
from tables.work import Work

# Key of the context of a config model's validators: true where the definition is pinned. A rule that is younger than
# the first release asks for it, and lets a pinned config pass.
PINNED = "pinned"


class Pending(msgspec.Struct, frozen=True, gc=False):
    """The attempt is not decided yet."""


class Completed(msgspec.Struct, frozen=True, gc=False):
    """The attempt has its output."""

    output: Any


class Failed(msgspec.Struct, frozen=True, gc=False):
    """The attempt failed."""

    code: str
    message: str
    retryable: bool = True
    output: Mapping[str, Any] = {}
    """A rejected gate keeps its output although the step failed."""


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A gate is open; until people decide, the step shows this output."""

    output: Any


Verdict = Pending | Completed | Failed
AtOnce = Completed | Failed | Opened


class CeremonyView(Protocol):
    """The parts of a ceremony that a kind may read. An Instance has them, and so has the row under construction."""

    @property
    def instance_id(self) -> str: ...
    @property
    def ceremony_id(self) -> str: ...
    @property
    def story_id(self) -> str: ...
    @property
    def correlation_id(self) -> str: ...
    @property
    def inputs(self) -> dict[str, Any]: ...
    @property
    def steps(self) -> Mapping[str, StepState]: ...
    @property
    def visits(self) -> Mapping[str, int]: ...


class StepContext(msgspec.Struct, frozen=True, gc=False):
    """Everything that a kind may read about one step. It must change none of it, nor keep it."""

    instance: CeremonyView
    """The ceremony as it stands: no row is made only to be read."""
    definition: Definition
    step: Step
    now: int
    """Time of the command's append, in milliseconds."""
    work: Work = msgspec.field(default_factory=Work)
    """The steps left for the command."""

    @property
    def state(self) -> StepState:
        """Return the state of the step itself."""
        return self.instance.steps[self.step.id]

    @property
    def visit(self) -> int:
        """Return the number of times the step's state was entered."""
        return self.instance.visits.get(self.step.state, 0)

    def output(self, step_id: str) -> Any | None:
        """Return the output of a COMPLETED step, or None."""
        state = self.instance.steps.get(step_id)
        return None if state is None or state.status != "COMPLETED" else state.output


class Decided(msgspec.Struct, frozen=True, gc=False):
    """The decision on a gate: approvals that reach its quorum, or one rejection."""

    approved: bool
    by: tuple[Approval, ...]
    """The deciding approvals (distinct actors), or the one rejection."""


class Publication(msgspec.Struct, frozen=True, gc=False):
    """The message that a step sends in one visit of its state. Request and success are announced as events."""

    subject: str
    event_type: str
    idempotency_key: str
    """The same for every attempt of a visit (specification 9.6)."""


class Source(NamedTuple):
    """A value that a step reads: an output of a step, or else an input."""

    name: str
    """The step, or the input, and a dotted path inside."""
    input: str
    """The input that may give the value."""


class StepKind(Protocol):
    """One kind of step; pure. The registry finds it by `handler`."""

    handler: str
    """As in a definition: `deliberation_step`, …"""
    name: str
    """Short: `deliberation`, …; its topic is `steps.<name>`."""
    config: type[BaseModel]
    """Strict pydantic model, unknown keys forbidden."""

    reaches_out: bool
    """True when its agent calls a neighbour: then it acts only on requests that are durable in the log."""

    fields: tuple[str, ...]
    """Names at the top of the output of a COMPLETED step; empty: any."""

    # -- the facts of a step, from its config

    def templates(self, step: Step) -> Mapping[str, Any]:
        """Return the templates of the config by their path in it."""

    def sources(self, step: Step) -> Iterable[Source]:
        """Return the values that the step reads beside its templates."""

    def inputs(self, step: Step) -> Iterable[str] | None:
        """Return the names of inputs that the step reads beside its templates and sources; None: it reads all."""

    def fills(self, step: Step, definition: Definition) -> Iterable[str]:
        """Return the names of the definition's outputs that the step fills."""

    def advise(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        """List mistakes that are no violations, for `validate`: (config path, rule code, message) each."""

    def role(self, step: Step) -> str | None:
        """Return the role in which the step acts, or None."""

    def gate(self, step: Step) -> Gate | None:
        """Return the facts of the gate, or None for a step that people do not decide."""

    def agents(self, step: Step) -> tuple[str, ...]:
        """Return the ids of the agents whose answers the step counts."""

    def prompts(self, step: Step) -> tuple[str, ...]:
        """Return the prompts of the config as the definition writes them: they must not leave as they are."""

    def publication(self, step: Step, instance_id: str, visit: int) -> Publication | None:
        """Return the message that the step sends in this visit, or None for a kind that sends none."""

    # -- the life of an attempt

    def check(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        """Check rules that need the whole definition, at load: (config path, rule code, message) per violation."""

    def request(self, context: StepContext) -> Any | Failed:
        """Return the body of StepRequested for the next attempt (JSON-able), or the reason why it cannot begin.

        `context.state.attempt` already is the number of that attempt.
        """

    def steps_at_once(self, body: Any, row_size: int, left: int) -> int:
        """Return a bound of the steps of work that `at_once` takes; where fewer are left, the agent is asked.

        `row_size`: bytes that the row counts, all values of the body among them. `left`: the count may end above it.
        """

    def at_once(self, body: Any) -> AtOnce | None:
        """Return the result of an attempt that needs no outside call, or None where its agent must be asked.

        The result is a pure function of the request's body, and the same that the agent would give.
        """

    def accepts(self, context: StepContext, agent_id: str) -> bool:
        """Return whether this attempt asked that agent, so that its answer counts."""

    def completed(self, context: StepContext, output: Any) -> Verdict:
        """Judge the output with which the agent completed the attempt."""

    def gathered(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        """Judge the agents' answers so far, the newest included."""

    def timed_out(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        """Judge an attempt whose time is up: Completed where the answers suffice, else Failed (`timeout`)."""

    def decided(self, context: StepContext, decision: Decided) -> Verdict:
        """Judge the decision on a gate. Kinds without a gate return Failed (`not_a_gate`)."""


def with_facts(step: Step, kind: StepKind) -> Step:
    """Return the step with the facts that its kind states and the fold reads."""
    return replace(
        step,
        role=kind.role(step),
        gate=kind.gate(step),
        agents=kind.agents(step),
        prompts=kind.prompts(step),
        publishes=kind.publication(step, "", 1) is not None,
    )


# The registry: handler → kind.
Kinds = Mapping[str, StepKind]
