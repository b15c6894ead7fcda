"""Human gate: the ceremony waits until people decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import BaseModel, Field

from steps.agent import AgentFunction, AgentPorts, answering
from steps.config import Config, NonBlankText, config_of
from steps.kind import Kind, rendered, unrendered
from steps.outcome import Outcome, outcome_of
from tables.definition import Gate, Step
from tables.instance import REJECTED, AgentAnswer, StepStatus, gate_message
from tables.kinds import AtOnce, Completed, Decided, Failed, Opened, StepContext, Verdict
from tables.templates import TemplateFailed
from tables.timers import iso

TEN_YEARS_SECONDS = 10 * 366 * 86400


class HumanGateConfig(Config):
    role: NonBlankText
    """Role in which people decide."""
    message: NonBlankText
    """May hold `${inputs.…}` and `${steps.…}`."""
    deadline_seconds: float | None = Field(default=None, gt=0, le=TEN_YEARS_SECONDS)
    """Seconds from the opening of the gate; default: it waits as long as the ceremony may run."""
    quorum: int = Field(default=1, ge=1, le=999)
    """Number of approvals needed, each by another actor."""


class HumanGate(Kind):
    """The pure part of the kind."""

    handler: str = "human_gate_step"
    name: str = "human_gate"
    config: type[BaseModel] = HumanGateConfig
    fields: tuple[str, ...] = ("role", "message", "approved", "decided_by", "decided_at", "comment")

    def templates(self, step: Step) -> Mapping[str, Any]:
        return {"message": config_of(step, HumanGateConfig).message}

    def role(self, step: Step) -> str | None:
        return config_of(step, HumanGateConfig).role

    def gate(self, step: Step) -> Gate | None:
        config = config_of(step, HumanGateConfig)
        return Gate(config.role, config.message, config.quorum, config.deadline_seconds)

    def request(self, context: StepContext) -> Any | Failed:
        """Return the body `{role, message}`; the message is rendered as the gate opens, and stays as it is then."""
        config = config_of(context.step, HumanGateConfig)
        try:
            return {"role": config.role, "message": rendered(context, config.message)}
        except TemplateFailed as error:
            return unrendered(error)

    def at_once(self, body: Any) -> AtOnce | None:
        """Open the gate at once."""
        return _opened(body["role"], body["message"])

    def timed_out(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        """Fail: the gate's deadline passed, or its agent never opened it."""
        if context.state.status is StepStatus.WAITING_FOR_HUMAN:
            return Failed("gate_deadline", "the gate's deadline passed without a decision", retryable=False)
        return super().timed_out(context, answers)

    def decided(self, context: StepContext, decision: Decided) -> Verdict:
        """Complete, or fail for good; a rejection keeps its output too."""
        output = _output(context, decision)
        if decision.approved:
            return Completed(output)
        return Failed(REJECTED, f"rejected by {output['decided_by']}", retryable=False, output=output)


def _output(context: StepContext, decision: Decided) -> dict[str, Any]:
    """Join actors and comments of a quorum; `decided_at` is the time of the last approval."""
    config = config_of(context.step, HumanGateConfig)
    return {
        "role": config.role,
        "message": gate_message(context.state, config.message),
        "approved": decision.approved,
        "decided_by": ", ".join(approval.actor for approval in decision.by),
        "decided_at": iso(max((approval.at for approval in decision.by), default=0)),
        "comment": "\n".join(approval.comment for approval in decision.by if approval.comment),
    }


class GateBody(msgspec.Struct, frozen=True, gc=False):
    """Body of the request."""

    role: str
    message: str


def agent(ports: AgentPorts) -> AgentFunction:
    """Return the agent of `steps.human_gate`, which opens the gate."""
    return answering("human_gate", ports.wiring, GateBody, _answer)


def _answer(body: GateBody) -> Outcome:
    return outcome_of(_opened(body.role, body.message))


def _opened(role: str, message: str) -> Opened:
    return Opened({"role": role, "message": message, "waiting": True})
