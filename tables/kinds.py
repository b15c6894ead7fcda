"""The protocol a step kind implements; the loader and `decide` get the registry of kinds as an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import msgspec
from pydantic import BaseModel

from tables.definition import Definition, Gate, Step
from tables.instance import AgentAnswer, Approval, Instance, StepState


class Pending(msgspec.Struct, frozen=True, gc=False):
    """Nothing is settled yet."""


class Completed(msgspec.Struct, frozen=True, gc=False):
    """The attempt has its output."""

    output: Any


class Failed(msgspec.Struct, frozen=True, gc=False):
    """The attempt failed."""

    code: str
    message: str
    retryable: bool = True
    output: Mapping[str, Any] = {}
    """Kept although the step failed (a rejected gate)."""


class Opened(msgspec.Struct, frozen=True, gc=False):
    """People are awaited; until they have decided, the step shows this output."""

    output: Any


Verdict = Pending | Completed | Failed
AtOnce = Completed | Failed | Opened


class StepContext(msgspec.Struct, frozen=True, gc=False):
    """What a kind may read when it is asked about one step; nothing in it may be changed."""

    instance: Instance
    definition: Definition
    step: Step
    now: int
    """Milliseconds, the fold's now."""

    @property
    def state(self) -> StepState:
        """The step's own row."""
        return self.instance.steps[self.step.id]

    @property
    def visit(self) -> int:
        """How often the step's state was entered."""
        return self.instance.visits.get(self.step.state, 0)

    def output(self, step_id: str) -> Any | None:
        """Output of a COMPLETED step, or None."""
        state = self.instance.steps.get(step_id)
        return None if state is None or state.status != "COMPLETED" else state.output


class Decided(msgspec.Struct, frozen=True, gc=False):
    """Approvals of a gate when its quorum is reached, or one rejection."""

    approved: bool
    by: tuple[Approval, ...]
    """The deciding approvals (distinct actors), or the one rejection."""


class Publication(msgspec.Struct, frozen=True, gc=False):
    """The message that a step sends out in one visit of its state; it is announced when requested and when sent."""

    subject: str
    event_type: str
    idempotency_key: str
    """The same for every attempt of a visit (specification 9.6)."""


class StepKind(Protocol):
    """One kind of step; pure. A registry maps `handler` to it."""

    handler: str
    """As in a definition: `deliberation_step`, …"""
    name: str
    """Short: `deliberation`, …; its topic is `steps.<name>`."""
    config: type[BaseModel]
    """Strict pydantic model, unknown keys forbidden."""

    reaches_out: bool
    """Its agent speaks to a neighbour: it may act only on what is durable in the log."""

    # -- the facts of a step, from its config

    def role(self, step: Step) -> str | None:
        """The role in which the step acts, or None where it needs none."""

    def gate(self, step: Step) -> Gate | None:
        """The facts of the gate, or None for a step that people do not decide."""

    def agents(self, step: Step) -> tuple[str, ...]:
        """Ids of the agents whose answers the step counts."""

    def publication(self, step: Step, instance_id: str, visit: int) -> Publication | None:
        """The message that the step sends out in this visit, or None for a step that sends none."""

    # -- the life of an attempt

    def check(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        """Rules that need the whole definition, at load: (config path, rule code, message) for each violation."""

    def request(self, context: StepContext) -> Any | Failed:
        """Body of StepRequested for the attempt that begins (JSON-able), or why it cannot begin.

        `context.state.attempt` is already the number of that attempt.
        """

    def at_once(self, body: Any) -> AtOnce | None:
        """What the attempt comes to, where that follows from the body of its request alone: then no agent is asked.

        None: only its agent can say. A pure function of the body, as its agent's answer to the same request.
        """

    def accepts(self, context: StepContext, agent_id: str) -> bool:
        """Whether this attempt asked that agent, so that its answer counts. False for kinds without agents."""

    def completed(self, context: StepContext, output: Any) -> Verdict:
        """The agent says `completed` with this output."""

    def gathered(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        """Judge the agents' answers so far (the newest included). Kinds without agents never get any."""

    def timed_out(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        """The attempt's time is up: Completed where the answers suffice, else Failed (`timeout`)."""

    def decided(self, context: StepContext, decision: Decided) -> Verdict:
        """A gate was decided. Kinds without a gate answer Failed (`not_a_gate`)."""


def with_facts(step: Step, kind: StepKind) -> Step:
    """The step with the facts that the fold reads of it, as its kind states them."""
    return replace(step, role=kind.role(step), gate=kind.gate(step), agents=kind.agents(step))


# Registry: handler → kind.
Kinds = Mapping[str, StepKind]
