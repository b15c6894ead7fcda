"""Decisions of people, on gate steps and on human guards."""

from __future__ import annotations

from msgspec.structs import replace

from tables import roles
from tables.commands import GateDecision
from tables.definition import Gate, Guard, Step
from tables.fold import refusals, step_life
from tables.fold.context import FoldContext
from tables.fold.next_row import approvals_weight
from tables.fold.transitions import advance
from tables.guards import is_human
from tables.instance import Approval, Phase, StepState, StepStatus
from tables.invariants import REJECTED
from tables.kinds import Completed, Decided, Failed
from tables.limits import MAX_ID, MAX_OUTPUT, MAX_ROW, MAX_TEXT, clip

_MOST_APPROVALS = MAX_OUTPUT // 2
"""Bytes; the gate's output joins what its actors said, and must fit too."""
GATE_DECIDED = "ceremony.gate.decided"


def gate_decision(turn: FoldContext, command: GateDecision) -> None:
    """A decision names a gate step, or a human guard."""
    step = turn.definition.steps.get(command.gate)
    guard = turn.definition.guards.get(command.gate)
    if step is not None and step.gate is not None:
        _on_step(turn, command, step, step.gate)
    elif guard is not None and is_human(guard):
        _on_guard(turn, command, guard)
    else:
        turn.refuse(
            command.command_id,
            refusals.GATE_UNKNOWN,
            f"{clip(command.gate, 64)!r} is neither a gate step nor a human guard of {turn.definition.name}",
        )


def _approval(turn: FoldContext, command: GateDecision) -> Approval:
    return Approval(clip(command.actor, MAX_ID), clip(command.role, MAX_ID), turn.now, clip(command.comment, MAX_TEXT))


def _on_step(turn: FoldContext, command: GateDecision, step: Step, gate: Gate) -> None:
    state = turn.row.steps[step.id]
    problem = _step_problem(turn, command, step, gate)
    if problem is not None:
        turn.refuse(command.command_id, *problem)
        return
    if _said_before(command, state):
        turn.note = "duplicate"
        return
    approval = _approval(turn, command)
    approvals = (*state.approvals, approval)
    weight = approvals_weight(approvals)
    if weight > _MOST_APPROVALS or turn.row.size + weight > MAX_ROW:
        turn.refuse(command.command_id, refusals.ROW_FULL, "the ceremony cannot hold one more comment of that length")
        return
    if not command.approved:
        _decide(turn, step, gate, Decided(approved=False, by=(approval,)))
        return
    if len(approvals) < gate.quorum:
        turn.row.set_step(step.id, replace(state, approvals=approvals, gathered=weight))
        return
    _decide(turn, step, gate, Decided(approved=True, by=approvals))


def _step_problem(turn: FoldContext, command: GateDecision, step: Step, gate: Gate) -> tuple[str, str] | None:
    """Why this actor may not decide this gate now. Who may not is told so before what is open."""
    refusal = _actor_problem(turn, command, step, gate)
    if refusal is not None:
        return refusal
    state = turn.row.steps[step.id]
    visit = turn.row.visits.get(step.state, 0)
    if command.visit and command.visit != visit:
        return refusals.STALE_VISIT, f"the decision is on visit {command.visit} of {step.id}, now it is visit {visit}"
    if _said_before(command, state):
        return None
    if turn.row.ended:
        return refusals.ALREADY_ENDED, f"the ceremony is {turn.row.status}"
    if state.phase is not Phase.GATE:
        return refusals.GATE_NOT_OPEN, f"gate `{step.id}` is {state.status}"
    return None


def _actor_problem(turn: FoldContext, command: GateDecision, step: Step, gate: Gate) -> tuple[str, str] | None:
    if not command.actor.strip():
        return refusals.ACTOR_REQUIRED, "a decision needs an actor"
    return roles.gate_refusal(turn.definition, step, gate, command.role)


def _said_before(command: GateDecision, state: StepState) -> bool:
    """Whether this actor's same word has been taken already, in this visit."""
    if not any(approval.actor == clip(command.actor, MAX_ID) for approval in state.approvals):
        return False
    rejected = state.status is StepStatus.FAILED and state.error_code == REJECTED
    return command.approved is not rejected


def _decide(turn: FoldContext, step: Step, gate: Gate, decision: Decided) -> None:
    """The gate is decided: announced, concluded, and the human guards that name its role follow an approval."""
    by = decision.by
    last = by[-1]
    turn.event(
        GATE_DECIDED,
        {
            "instance_id": turn.row.base.instance_id,
            "gate": step.id,
            "current_state": turn.row.state,
            "visit": turn.row.visits.get(step.state, 0),
            "approved": decision.approved,
            "decided_by": [approval.actor for approval in by],
            "role": last.role,
            "comment": last.comment,
        },
    )
    verdict = turn.kind(step).decided(turn.context(step), decision)
    if isinstance(verdict, Completed):
        step_life.complete(turn, step, verdict.output, approvals=by)
        if turn.row.steps[step.id].status is StepStatus.COMPLETED:
            _satisfy_guards(turn, step, gate, last)
    elif isinstance(verdict, Failed):
        step_life.fail(turn, step, verdict, by)
    advance(turn)


def _satisfy_guards(turn: FoldContext, step: Step, gate: Gate, last: Approval) -> None:
    for transition in turn.definition.transitions_from.get(step.state, ()):
        for name in transition.guards:
            guard = turn.definition.guards[name]
            if is_human(guard) and guard.role == gate.role:
                turn.row.approve_guard(name, replace(last, role=gate.role))


def _on_guard(turn: FoldContext, command: GateDecision, guard: Guard) -> None:
    """Approving satisfies the guard for this visit; rejecting withdraws what was approved."""
    problem = _guard_problem(turn, command, guard)
    if problem is not None:
        turn.refuse(command.command_id, *problem)
        return
    known = turn.row.guard_approvals.get(guard.name, ())
    approval = _approval(turn, command)
    if command.approved and any(a.actor == approval.actor and a.role == approval.role for a in known):
        turn.note = "duplicate"
        return
    if command.approved:
        turn.row.approve_guard(guard.name, approval)
    else:
        turn.row.withdraw_guard(guard.name)
    turn.event(
        GATE_DECIDED,
        {
            "instance_id": turn.row.base.instance_id,
            "gate": guard.name,
            "current_state": turn.row.state,
            "visit": turn.row.visits.get(turn.row.state, 0),
            "approved": command.approved is True,
            "decided_by": [approval.actor],
            "role": approval.role,
            "comment": approval.comment,
        },
    )
    advance(turn)


def _guard_problem(turn: FoldContext, command: GateDecision, guard: Guard) -> tuple[str, str] | None:
    if not command.actor.strip():
        return refusals.ACTOR_REQUIRED, "a decision needs an actor"
    refusal = roles.guard_refusal(guard, command.role)
    if refusal is not None:
        return refusal
    if turn.row.ended:
        return refusals.ALREADY_ENDED, f"the ceremony is {turn.row.status}"
    state = turn.row.state
    visit = turn.row.visits.get(state, 0)
    if not any(guard.name in transition.guards for transition in turn.definition.transitions_from.get(state, ())):
        return refusals.GATE_NOT_OPEN, f"no transition leaving {state} has the guard `{guard.name}`"
    if command.visit and command.visit != visit:
        return refusals.STALE_VISIT, f"the decision is on visit {command.visit} of {state}, now it is visit {visit}"
    return None
