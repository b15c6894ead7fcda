"""Decisions of people, on gate steps and on human guards."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from tables import roles
from tables.commands import GateDecision
from tables.definition import Gate, Guard, Step
from tables.fold import refusals, step_life
from tables.fold.context import FoldContext
from tables.fold.transitions import advance
from tables.guards import is_human
from tables.instance import REJECTED, Approval, Phase, StepState, StepStatus, approvals_weight
from tables.kinds import Completed, Decided, Failed, Pending, Verdict
from tables.limits import (
    MAX_ACTOR_KEY_CHARACTERS,
    MAX_COUNTED_BYTES,
    MAX_ID_CHARACTERS,
    MAX_OUTPUT_BYTES,
    MAX_TEXT_CHARACTERS,
    Unfit,
    clip,
    weigh,
)

# Approvals of one gate. Its output joins actors and comments, and must fit too, beside the output of the open gate.
_MOST_APPROVALS_BYTES = MAX_OUTPUT_BYTES // 2
_ROW_FULL = "the ceremony holds too much to keep a decision with a comment of this length"
GATE_DECIDED = "ceremony.gate.decided"


def gate_decision(fold: FoldContext, command: GateDecision) -> None:
    """Fold a decision, which names a gate step or a human guard."""
    step, guard = _named(fold, command)
    if step is not None and step.gate is not None:
        _on_step(fold, command, step, step.gate)
    elif guard is not None:
        _on_guard(fold, command, guard)
    else:
        fold.refuse(
            command,
            refusals.GATE_UNKNOWN,
            f"{clip(command.gate, 64)!r} is neither a gate step nor a human guard of {fold.definition.name}",
        )


def _named(fold: FoldContext, command: GateDecision) -> tuple[Step | None, Guard | None]:
    """Return the gate step or the human guard that the decision is about, or neither.

    Only definitions that are pinned, and older than the rule against it, have both under one name. There the guard is
    meant where the decision calls it a guard, and else the step.
    """
    step, guard = fold.definition.steps.get(command.gate), fold.definition.guards.get(command.gate)
    human = guard if guard is not None and is_human(guard) else None
    if step is None or step.gate is None or (command.names_guard and human is not None):
        return None, human
    return step, None


def forbidden(fold: FoldContext, command: GateDecision) -> tuple[str, str] | None:
    """Return why the decision is not open to its actor: none is named, or the role may not decide this gate."""
    if not command.actor.strip():
        return refusals.ACTOR_REQUIRED, "a decision needs an actor"
    step, guard = _named(fold, command)
    if step is not None and step.gate is not None:
        return roles.gate_refusal(fold.definition, step, step.gate, command.role)
    return None if guard is None else roles.guard_refusal(guard, command.role)


def _approval(fold: FoldContext, command: GateDecision) -> Approval:
    actor, key = clip(command.actor, MAX_ID_CHARACTERS), clip(command.actor_key, MAX_ACTOR_KEY_CHARACTERS)
    return Approval(
        actor,
        clip(command.role, MAX_ID_CHARACTERS),
        fold.now,
        clip(command.comment, MAX_TEXT_CHARACTERS),
        "" if key == actor else key,
    )


def _on_step(fold: FoldContext, command: GateDecision, step: Step, gate: Gate) -> None:
    state = fold.row.steps[step.id]
    problem = _step_problem(fold, command, step)
    if problem is not None:
        fold.refuse(command, *problem)
        return
    approval = _approval(fold, command)
    if _repeats(command, approval, state):
        fold.note = "duplicate"
        return
    approvals = (*state.approvals, approval) if command.approved else (approval,)
    if not command.approved or len(approvals) >= gate.quorum:
        decision = Decided(approved=command.approved is True, by=approvals)
        verdict = fold.kind(step).decided(fold.context(step), decision)
        if _has_room(fold, state, verdict, approvals):
            _decide(fold, step, gate, decision, verdict)
            return
    elif _has_room(fold, state, Pending(), approvals):
        fold.row.set_step(step.id, state.approved(approvals))
        return
    fold.refuse(command, refusals.ROW_FULL, _ROW_FULL)


def _has_room(fold: FoldContext, state: StepState, verdict: Verdict, approvals: tuple[Approval, ...]) -> bool:
    """Return whether the row can keep the approvals of a gate, and the output of its decision."""
    if approvals_weight(approvals) > _MOST_APPROVALS_BYTES:
        return False
    output = state.output if isinstance(verdict, Pending) else verdict.output
    try:
        size = weigh(output)
    except Unfit:
        return False
    return fold.row.has_room(state.completed(output, size, approvals), state, MAX_COUNTED_BYTES)


def _step_problem(fold: FoldContext, command: GateDecision, step: Step) -> tuple[str, str] | None:
    """Return why this actor may not decide this gate now. Permission is checked before the state of the gate."""
    refusal = forbidden(fold, command)
    if refusal is not None:
        return refusal
    state = fold.row.steps[step.id]
    visit = fold.row.visits.get(step.state, 0)
    if command.visit and command.visit != visit:
        return (
            refusals.STALE_VISIT,
            f"the decision names visit {command.visit} of {step.id}; the present visit is {visit}",
        )
    if _repeats(command, _approval(fold, command), state):
        return None
    if fold.row.ended:
        return refusals.ALREADY_ENDED, f"the ceremony is {fold.row.status}"
    if state.phase is not Phase.GATE:
        return refusals.GATE_NOT_OPEN, f"gate `{step.id}` is not open; its step is {state.status}"
    return None


def _repeats(command: GateDecision, decision: Approval, state: StepState) -> bool:
    """Return whether this actor has already decided the same in this visit."""
    if not any(approval.same_actor(decision) for approval in state.approvals):
        return False
    rejected = state.status is StepStatus.FAILED and state.error_code == REJECTED
    return command.approved is not rejected


def _decide(fold: FoldContext, step: Step, gate: Gate, decision: Decided, verdict: Verdict) -> None:
    """Announce and apply the decision; after an approval, approve the human guards of the same role too."""
    by = decision.by
    last = by[-1]
    fold.event(
        GATE_DECIDED,
        {
            "instance_id": fold.row.base.instance_id,
            "gate": step.id,
            "current_state": fold.row.state,
            "visit": fold.row.visits.get(step.state, 0),
            "approved": decision.approved,
            "decided_by": [approval.actor for approval in by],
            "role": last.role,
            "comment": last.comment,
        },
    )
    if isinstance(verdict, Completed):
        step_life.complete(fold, step, verdict.output, approvals=by)
        if fold.row.steps[step.id].status is StepStatus.COMPLETED:
            _satisfy_guards(fold, step, gate, by)
    elif isinstance(verdict, Failed):
        step_life.fail(fold, step, verdict, by)
    advance(fold)


def _satisfy_guards(fold: FoldContext, step: Step, gate: Gate, by: Sequence[Approval]) -> None:
    """Approve the human guards of the gate's role, where an actor has decided in that role; the last one is kept."""
    in_role = next((approval for approval in reversed(by) if approval.role == gate.role), None)
    if in_role is None:
        return
    for transition in fold.definition.transitions_from.get(step.state, ()):
        for name in transition.guards:
            guard = fold.definition.guards[name]
            if is_human(guard) and guard.role == gate.role and not fold.row.approve_guard(name, in_role):
                fold.row.approve_guard(name, replace(in_role, comment=""))


def _on_guard(fold: FoldContext, command: GateDecision, guard: Guard) -> None:
    """Approve the guard for this visit, or withdraw its approval."""
    problem = _guard_problem(fold, command, guard)
    if problem is not None:
        fold.refuse(command, *problem)
        return
    known = fold.row.guard_approvals.get(guard.name, ())
    approval = _approval(fold, command)
    if command.approved and any(a.same_actor(approval) and a.role == approval.role for a in known):
        fold.note = "duplicate"
        return
    if command.approved and not fold.row.approve_guard(guard.name, approval):
        fold.refuse(command, refusals.ROW_FULL, _ROW_FULL)
        return
    if not command.approved:
        fold.row.withdraw_guard(guard.name)
    fold.event(
        GATE_DECIDED,
        {
            "instance_id": fold.row.base.instance_id,
            "gate": guard.name,
            "current_state": fold.row.state,
            "visit": fold.row.visits.get(fold.row.state, 0),
            "approved": command.approved is True,
            "decided_by": [approval.actor],
            "role": approval.role,
            "comment": approval.comment,
        },
    )
    fold.judge_due = command.approved is True
    advance(fold)


def _guard_problem(fold: FoldContext, command: GateDecision, guard: Guard) -> tuple[str, str] | None:
    refusal = forbidden(fold, command)
    if refusal is not None:
        return refusal
    if fold.row.ended:
        return refusals.ALREADY_ENDED, f"the ceremony is {fold.row.status}"
    state = fold.row.state
    visit = fold.row.visits.get(state, 0)
    if not any(guard.name in transition.guards for transition in fold.definition.transitions_from.get(state, ())):
        return refusals.GATE_NOT_OPEN, f"no transition leaving {state} has the guard `{guard.name}`"
    if command.visit and command.visit != visit:
        return (
            refusals.STALE_VISIT,
            f"the decision names visit {command.visit} of {state}; the present visit is {visit}",
        )
    return None
