"""The life of a step: asked, asked again, retried, waiting for people, and its four ends.

Nothing here moves the ceremony; whoever ends a step calls `transitions.settle` afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from tables import roles
from tables.definition import Step
from tables.effects import StepRequested
from tables.fold.context import FoldContext
from tables.fold.next_row import IN_FLIGHT, approvals_weight
from tables.instance import Approval, Phase, StepState, StepStatus
from tables.invariants import REJECTED
from tables.kinds import AtOnce, Completed, Failed, Opened, Publication, Verdict
from tables.limits import MAX_ID, MAX_ROW, MAX_TEXT, Unfit, clip, weigh
from tables.timers import ASK, GATE, RETRY, TIMEOUT, ask_pause, iso, millis, retry_pause

STEP_EXECUTED = "ceremony.step.executed"
STEP_RETRYING = "ceremony.step.retrying"
PUBLISH_REQUESTED = "ceremony.publish.requested"
PUBLISH_COMPLETED = "ceremony.publish.completed"
GATE_OPENED = "ceremony.gate.opened"
# By name once: on Python 3.11 each look-up of a member costs a call.
_IN_PROGRESS, _COMPLETED, _FAILED = StepStatus.IN_PROGRESS, StepStatus.COMPLETED, StepStatus.FAILED
_ASKED = Phase.ASKED
_WORD = {status: status.value for status in StepStatus}


def start(turn: FoldContext, step: Step, *, new_budget: bool = False) -> None:
    """Begin the next attempt: the role is checked, then what only computes is settled, of others the agent is asked."""
    row = turn.row
    old = row.steps[step.id]
    attempt = old.attempt + 1
    row.drop_step_timers(step.id, old.phase)
    row.set_step(
        step.id,
        StepState(
            status=_IN_PROGRESS,
            attempt=attempt,
            tries=1 if new_budget else old.tries + 1,
            phase=_ASKED,
            asks=1,
            started_at=turn.now,
            announced=old.announced,
        ),
    )
    turn.started = step
    problem = roles.step_role_refusal(turn.definition, step) if turn.definition.roles else None
    if problem is not None:
        fail(turn, step, Failed(problem[0], problem[1], retryable=False))
        return
    _request(turn, step)


def ask_again(turn: FoldContext, step: Step) -> None:
    """Ask for the live attempt once more: its neighbour was out of reach, or the row was restored."""
    row, state = turn.row, turn.row.steps[step.id]
    row.drop_timer(ASK + step.id)
    row.set_step(step.id, replace(state, phase=Phase.ASKED, asks=state.asks + 1))
    _request(turn, step)


def _request(turn: FoldContext, step: Step) -> None:
    row = turn.row
    base, state = row.base, row.steps[step.id]
    kind = turn.kind(step)
    body = kind.request(turn.context(step))
    if isinstance(body, Failed):
        fail(turn, step, body)
        return
    if turn.settles_at_once(step) and (settled := kind.at_once(body)) is not None:
        _settle_at_once(turn, step, settled)
        return
    visit = row.visits.get(step.state, 0)
    publication = kind.publication(step, base.instance_id, visit)
    if publication is not None and state.asks == 1:
        turn.event(PUBLISH_REQUESTED, _announced(turn, step, publication))
    turn.effects.append(
        StepRequested(
            id=turn.effect_id(),
            kind=kind.name,
            instance_id=base.instance_id,
            step_id=step.id,
            attempt=state.attempt,
            visit=visit,
            deadline=_deadline(turn, step, state.attempt),
            correlation_id=base.correlation_id,
            body=body,
        )
    )


def _deadline(turn: FoldContext, step: Step, attempt: int) -> int:
    """When the attempt's time is up; it runs from when its agent was first asked."""
    timer = turn.row.timers.get(TIMEOUT + step.id)
    return turn.row.set_timer(TIMEOUT + step.id, millis(step.timeout_seconds), attempt) if timer is None else timer.due


def _settle_at_once(turn: FoldContext, step: Step, settled: AtOnce) -> None:
    """Let take effect what the request alone says, as if its agent had said it in a command of its own."""
    turn.at_once += (step.id,)
    if isinstance(settled, Opened):
        open_gate(turn, step, settled.output)
    else:
        conclude(turn, step, settled)


def unreachable(turn: FoldContext, step: Step) -> None:
    """The neighbour is out of reach: the same attempt is asked again after a growing pause, until its timeout."""
    state = turn.row.steps[step.id]
    turn.row.set_step(step.id, replace(state, phase=Phase.UNREACHABLE))
    turn.row.set_timer(ASK + step.id, ask_pause(state.asks), state.attempt)


def open_gate(turn: FoldContext, step: Step, output: Any) -> None:
    """People are awaited: the step's timeout ends, the gate's deadline begins."""
    gate = step.gate
    if gate is None:
        fail(turn, step, Failed("not_a_gate", f"{step.id} is no gate", retryable=False))
        return
    row, state = turn.row, turn.row.steps[step.id]
    try:
        size = weigh(output)
    except Unfit as error:
        fail(turn, step, Failed(error.code, error.message))
        return
    if row.size + size > MAX_ROW:
        fail(turn, step, _row_full(size))
        return
    row.drop_step_timers(step.id, state.phase)
    waiting = StepState(
        status=StepStatus.WAITING_FOR_HUMAN,
        attempt=state.attempt,
        tries=state.tries,
        phase=Phase.GATE,
        output=output,
        started_at=state.started_at,
        size=size,
    )
    row.set_step(step.id, waiting)
    deadline = gate.deadline_seconds
    if deadline is not None:
        row.set_timer(GATE + step.id, millis(deadline), state.attempt)
    turn.event(
        GATE_OPENED,
        {
            "instance_id": row.base.instance_id,
            "step_id": step.id,
            "current_state": row.state,
            "visit": row.visits.get(step.state, 0),
            "role": gate.role,
            "message": gate.message,
            "quorum": gate.quorum,
            "deadline": None if deadline is None else iso(turn.now + millis(deadline)),
        },
    )
    _executed(turn, step, waiting)


def conclude(turn: FoldContext, step: Step, verdict: Verdict) -> bool:
    """Let a verdict on the live attempt take effect; False when nothing is settled yet."""
    if isinstance(verdict, Completed):
        complete(turn, step, verdict.output)
    elif isinstance(verdict, Failed):
        fail(turn, step, verdict)
    else:
        return False
    return True


def complete(
    turn: FoldContext, step: Step, output: Any, claimed: int = 0, approvals: tuple[Approval, ...] = ()
) -> None:
    """The step has its output, unless that is more than a row keeps."""
    row, state = turn.row, turn.row.steps[step.id]
    try:
        size = weigh(output, claimed)
    except Unfit as error:
        fail(turn, step, Failed(error.code, error.message))
        return
    if row.size - state.size - state.gathered + size > MAX_ROW:
        fail(turn, step, _row_full(size))
        return
    row.drop_step_timers(step.id, state.phase)
    done = StepState(
        _COMPLETED,
        state.attempt,
        state.tries,
        output=output,
        deliberation_id=state.deliberation_id,
        approvals=approvals,
        started_at=state.started_at,
        size=size,
        gathered=approvals_weight(approvals),
        announced=state.announced,
    )
    row.set_step(step.id, done)
    _executed(turn, step, done)


def fail(turn: FoldContext, step: Step, failure: Failed, approvals: tuple[Approval, ...] = ()) -> None:
    """The live attempt failed: retried where its policy allows, else the step has failed for good."""
    state = turn.row.steps[step.id]
    policy = step.retry
    if failure.retryable and state.tries < policy.max_attempts and failure.code not in policy.non_retryable:
        _retry_later(turn, step, state, failure)
    else:
        _fail_for_good(turn, step, state, failure, approvals)


def _retry_later(turn: FoldContext, step: Step, state: StepState, failure: Failed) -> None:
    row = turn.row
    row.drop_step_timers(step.id, state.phase)
    row.set_step(
        step.id,
        StepState(
            status=StepStatus.IN_PROGRESS,
            attempt=state.attempt,
            tries=state.tries,
            phase=Phase.BACKOFF,
            error_code=clip(failure.code, MAX_ID),
            error_message=clip(failure.message, MAX_TEXT),
            started_at=state.started_at,
            announced=state.announced,
        ),
    )
    pause = retry_pause(step.retry, state.tries, row.base.instance_id, step.id, state.attempt)
    row.set_timer(RETRY + step.id, pause, state.attempt)
    turn.event(
        STEP_RETRYING,
        {
            "instance_id": row.base.instance_id,
            "step_id": step.id,
            "attempt": state.attempt,
            "next_attempt_at": iso(turn.now + pause),
            "error_code": clip(failure.code, MAX_ID),
            "error_message": clip(failure.message, MAX_TEXT),
        },
    )


def _fail_for_good(
    turn: FoldContext, step: Step, state: StepState, failure: Failed, approvals: tuple[Approval, ...]
) -> None:
    row = turn.row
    output: Mapping[str, Any] | None = failure.output if failure.code == REJECTED and failure.output else None
    size = 0
    if output is not None:
        size = weigh(output)
        if row.size - state.size - state.gathered + size > MAX_ROW:
            output, size = None, 0
    row.drop_step_timers(step.id, state.phase)
    failed = StepState(
        status=StepStatus.FAILED,
        attempt=state.attempt,
        tries=state.tries,
        output=output,
        error_code=clip(failure.code, MAX_ID) or "failed",
        error_message=clip(failure.message, MAX_TEXT),
        deliberation_id=state.deliberation_id,
        approvals=approvals,
        started_at=state.started_at,
        size=size,
        gathered=approvals_weight(approvals),
        announced=state.announced,
    )
    row.set_step(step.id, failed)
    _executed(turn, step, failed)


def cancel_in_flight(turn: FoldContext) -> None:
    """Steps in flight become CANCELLED, and say so before the event that moves or ends the ceremony."""
    for step in turn.here:
        state = turn.row.steps[step.id]
        if state.status not in IN_FLIGHT:
            continue
        turn.row.drop_step_timers(step.id, state.phase)
        cancelled = StepState(
            status=StepStatus.CANCELLED,
            attempt=state.attempt,
            tries=state.tries,
            started_at=state.started_at,
            announced=state.announced,
        )
        turn.row.set_step(step.id, cancelled)
        _executed(turn, step, cancelled)


def reset(turn: FoldContext, step: Step) -> None:
    """The step's state is entered: it is PENDING, with nothing of an earlier visit but the attempt number."""
    state = turn.row.steps[step.id]
    if state.attempt or state.status is not StepStatus.PENDING:
        turn.row.set_step(step.id, StepState(attempt=state.attempt, announced=state.announced))


def published(
    turn: FoldContext,
    step: Step,
    publication: Publication,
    receipt: Mapping[str, Any],
    visit: int,
    *,
    late: bool = False,
) -> None:
    """Announce that a publish step's message of this visit is on its stream."""
    turn.row.set_step(step.id, replace(turn.row.steps[step.id], announced=visit))
    payload = _announced(turn, step, publication) | {
        "stream": receipt.get("stream", ""),
        "sequence": receipt.get("sequence", 0),
        "duplicate": receipt.get("duplicate") is True,
    }
    if late:
        payload["late"] = True
    turn.event(PUBLISH_COMPLETED, payload)


def _announced(turn: FoldContext, step: Step, publication: Publication) -> dict[str, Any]:
    """Which message is meant."""
    return {
        "instance_id": turn.row.base.instance_id,
        "step_id": step.id,
        "subject": publication.subject,
        "event_type": publication.event_type,
        "idempotency_key": publication.idempotency_key,
    }


def _executed(turn: FoldContext, step: Step, state: StepState) -> None:
    payload: dict[str, Any] = {
        "instance_id": turn.row.base.instance_id,
        "step_id": step.id,
        "status": _WORD[state.status],
        "current_state": turn.row.state,
        "attempt": state.attempt,
        "output": {} if state.output is None and state.status is not _COMPLETED else state.output,
    }
    if state.status is _FAILED:
        payload["error_code"] = state.error_code
        payload["error_message"] = state.error_message
    turn.event(STEP_EXECUTED, payload)


def _row_full(size: int) -> Failed:
    return Failed(
        "output_too_large",
        f"with {size} more bytes the ceremony would hold more than {MAX_ROW}",
        retryable=False,
    )
