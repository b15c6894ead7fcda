"""The life of a step: requested, requested again, retried, waiting for people, and its four ends.

Nothing here moves the ceremony; the caller that ends a step calls `transitions.advance` afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables import roles
from tables.definition import Step
from tables.effects import StepRequested
from tables.fold.context import FoldContext
from tables.instance import IN_FLIGHT, REJECTED, Approval, StepState, StepStatus, gate_message
from tables.kinds import AtOnce, Completed, Failed, Opened, Publication, Verdict
from tables.limits import (
    KIB,
    MAX_COUNTED_BYTES,
    MAX_ID_CHARACTERS,
    MAX_OUTPUT_BYTES,
    MAX_REQUEST_BYTES,
    MAX_ROW_BYTES,
    MAX_TEXT_CHARACTERS,
    MIN_CODE_BYTES,
    Unfit,
    clip,
    clip_bytes,
    encoded_size,
    text_size,
    weigh,
)
from tables.retries import ask_pause, retry_pause
from tables.timers import ASK, GATE, RETRY, TIMEOUT, iso, millis
from tables.work import WorkSpent

# Steps of work (tables/work.py) of one request; and, for each byte of the row, of one that was not made.
_REQUEST_STEPS, _REFUSED_STEPS_PER_BYTE = 1000, 4
# Steps of work of one failure.
_FAILURE_STEPS = 1000
STEP_EXECUTED = "ceremony.step.executed"
STEP_RETRYING = "ceremony.step.retrying"
PUBLISH_REQUESTED = "ceremony.publish.requested"
PUBLISH_COMPLETED = "ceremony.publish.completed"
GATE_OPENED = "ceremony.gate.opened"
# By name once: on Python 3.11 each look-up of a member costs a call.
_COMPLETED, _FAILED = StepStatus.COMPLETED, StepStatus.FAILED
_WORD = {status: status.value for status in StepStatus}
# Requests of a ceremony that holds less are not measured: kinds bound the texts that they put in.
_MEASURED_FROM_BYTES = 16 * 1024
# The longest code and message as JSON writes them: up to six bytes a character, and their quotes.
_LONGEST_TEXTS_BYTES = 6 * (MAX_ID_CHARACTERS + MAX_TEXT_CHARACTERS) + 4
# The output of an open gate leaves the other half to the approvals, which the output of its decision joins.
_MAX_OPENED_BYTES = MAX_OUTPUT_BYTES // 2 - KIB


def start(fold: FoldContext, step: Step, *, new_budget: bool = False) -> None:
    """Start the next attempt. Steps that need no outside call finish here; for the rest, request the step's agent."""
    row = fold.row
    old = row.steps[step.id]
    row.drop_step_timers(step.id, old.phase)
    row.set_step(step.id, old.started(fold.now, new_budget=new_budget))
    fold.started = step
    problem = roles.step_role_refusal(fold.definition, step) if fold.definition.roles else None
    if problem is not None:
        fail(fold, step, Failed(problem[0], problem[1], retryable=False))
        return
    _request(fold, step)


def ask_again(fold: FoldContext, step: Step) -> None:
    """Request the live attempt once more: its neighbour was unreachable, or the row was restored."""
    fold.row.drop_timer(ASK + step.id)
    fold.row.set_step(step.id, fold.row.steps[step.id].asked_again())
    _request(fold, step)


def _request(fold: FoldContext, step: Step) -> None:
    row = fold.row
    base, state = row.base, row.steps[step.id]
    kind, work = fold.kinds[step.handler], fold.work
    try:
        work.spend(_REQUEST_STEPS)
        body = kind.request(fold.context(step))
    except WorkSpent as error:
        fail(fold, step, Failed(error.code, error.message))
        return
    if isinstance(body, Failed):
        work.drain(_REFUSED_STEPS_PER_BYTE * row.size)
        fail(fold, step, body)
        return
    may = fold.may_finish_at_once(step) and work.takes(kind.steps_at_once(body, row.size, work.left))
    if may and (finished := kind.at_once(body)) is not None:
        _finish_at_once(fold, step, finished)
        return
    if row.size > _MEASURED_FROM_BYTES:
        size = encoded_size(body)
        work.drain(size)
        if size > MAX_REQUEST_BYTES:
            fail(fold, step, _request_too_large(size))
            return
    visit = row.visits.get(step.state, 0)
    publication = fold.publication(step, visit) if step.publishes else None
    if publication is not None and state.asks == 1:
        fold.event(PUBLISH_REQUESTED, _announced(fold, step, publication))
    fold.effects.append(
        StepRequested(
            id=fold.effect_id(),
            kind=kind.name,
            instance_id=base.instance_id,
            step_id=step.id,
            attempt=state.attempt,
            visit=visit,
            deadline=_deadline(fold, step, state.attempt),
            correlation_id=base.correlation_id,
            body=body,
        )
    )


def _deadline(fold: FoldContext, step: Step, attempt: int) -> int:
    """Return the deadline of the attempt, counted from its first request."""
    timer = fold.row.timers.get(TIMEOUT + step.id)
    return fold.row.set_timer(TIMEOUT + step.id, millis(step.timeout_seconds), attempt) if timer is None else timer.due


def _finish_at_once(fold: FoldContext, step: Step, finished: AtOnce) -> None:
    """Apply a result that follows from the request alone, as if its agent had answered."""
    fold.at_once += (step.id,)
    if isinstance(finished, Opened):
        open_gate(fold, step, finished.output)
    else:
        conclude(fold, step, finished)


def unreachable(fold: FoldContext, step: Step, code: str, message: str) -> None:
    """Request the same attempt again after a growing pause, until its timeout; the row keeps the reason."""
    row, state = fold.row, fold.row.steps[step.id]
    room = MAX_COUNTED_BYTES - row.size + text_size(state.error_code) + text_size(state.error_message)
    row.set_step(step.id, state.unreachable(*_texts(Failed(code or "unreachable", message), room)))
    fold.row.set_timer(ASK + step.id, ask_pause(state.asks), state.attempt)


def open_gate(fold: FoldContext, step: Step, output: Any) -> None:
    """Open a gate: the step's timeout ends, the gate's deadline begins."""
    gate = step.gate
    if gate is None:
        fail(fold, step, Failed("not_a_gate", f"step `{step.id}` is not a gate", retryable=False))
        return
    row, state = fold.row, fold.row.steps[step.id]
    try:
        size = weigh(output)
    except Unfit as error:
        fail(fold, step, Failed(error.code, error.message))
        return
    if size > _MAX_OPENED_BYTES:
        message = f"the output of the open gate has {size} bytes, at most {_MAX_OPENED_BYTES} are kept"
        fail(fold, step, Failed("output_too_large", message, retryable=False))
        return
    waiting = state.opened(output, size)
    if not row.set_step(step.id, waiting, MAX_ROW_BYTES):
        fail(fold, step, _row_full(size))
        return
    row.drop_step_timers(step.id, state.phase)
    deadline = gate.deadline_seconds
    if deadline is not None:
        row.set_timer(GATE + step.id, millis(deadline), state.attempt)
    fold.event(
        GATE_OPENED,
        {
            "instance_id": row.base.instance_id,
            "step_id": step.id,
            "current_state": row.state,
            "visit": row.visits.get(step.state, 0),
            "role": gate.role,
            "message": gate_message(waiting, gate.message),
            "quorum": gate.quorum,
            "deadline": None if deadline is None else iso(row.at + millis(deadline)),
        },
    )
    _executed(fold, step, waiting)


def conclude(fold: FoldContext, step: Step, verdict: Verdict) -> bool:
    """Apply a verdict on the live attempt; False while it is pending."""
    if isinstance(verdict, Completed):
        complete(fold, step, verdict.output)
    elif isinstance(verdict, Failed):
        fail(fold, step, verdict)
    else:
        return False
    return True


def complete(
    fold: FoldContext, step: Step, output: Any, claimed: int = 0, approvals: tuple[Approval, ...] = ()
) -> None:
    """Complete the step, or fail it where its output is larger than a row may keep.

    The decision of people on a gate may use the room for texts: its output repeats what they wrote.
    """
    row, state = fold.row, fold.row.steps[step.id]
    try:
        size = weigh(output, claimed)
    except Unfit as error:
        fail(fold, step, Failed(error.code, error.message))
        return
    done = state.completed(output, size, approvals)
    if not row.set_step(step.id, done, MAX_COUNTED_BYTES if approvals else MAX_ROW_BYTES):
        fail(fold, step, _row_full(size))
        return
    row.drop_step_timers(step.id, state.phase)
    _executed(fold, step, done)


def fail(fold: FoldContext, step: Step, failure: Failed, approvals: tuple[Approval, ...] = ()) -> None:
    """Retry a failed attempt where the policy allows it, else fail the step for good."""
    fold.work.drain(_FAILURE_STEPS)
    state = fold.row.steps[step.id]
    policy = step.retry
    if failure.retryable and state.tries < policy.max_attempts and failure.code not in policy.non_retryable:
        _retry_later(fold, step, state, failure)
    else:
        _fail_for_good(fold, step, state, failure, approvals)


def _retry_later(fold: FoldContext, step: Step, state: StepState, failure: Failed) -> None:
    row = fold.row
    row.drop_step_timers(step.id, state.phase)
    retrying = state.retrying(*_texts(failure, MAX_COUNTED_BYTES - row.size + state.size + state.gathered))
    row.set_step(step.id, retrying)
    pause = retry_pause(step.retry, state.tries, row.base.instance_id, step.id, state.attempt)
    row.set_timer(RETRY + step.id, pause, state.attempt)
    fold.event(
        STEP_RETRYING,
        {
            "instance_id": row.base.instance_id,
            "step_id": step.id,
            "attempt": state.attempt,
            "next_attempt_at": iso(row.at + pause),
            "error_code": retrying.error_code,
            "error_message": retrying.error_message,
        },
    )


def _fail_for_good(
    fold: FoldContext, step: Step, state: StepState, failure: Failed, approvals: tuple[Approval, ...]
) -> None:
    row = fold.row
    output: Mapping[str, Any] | None = failure.output if failure.code == REJECTED and failure.output else None
    size = 0 if output is None else weigh(output)
    row.drop_step_timers(step.id, state.phase)
    kept = state.failed("", "", output, size, approvals)
    room = MAX_COUNTED_BYTES - row.size + state.size + state.gathered - kept.size - kept.gathered
    code, message = _texts(failure, room)
    failed = state.failed(code or "failed", message, output, size, approvals)
    row.set_step(step.id, failed)
    _executed(fold, step, failed)


def _texts(failure: Failed, room: int) -> tuple[str, str]:
    """Return code and message of a failure, cut to the room that is left in the row."""
    code, message = clip(failure.code, MAX_ID_CHARACTERS), clip(failure.message, MAX_TEXT_CHARACTERS)
    if room >= _LONGEST_TEXTS_BYTES:
        return code, message
    code = clip_bytes(code, max(room, MIN_CODE_BYTES))
    return code, clip_bytes(message, room - text_size(code))


def cancel_in_flight(fold: FoldContext) -> None:
    """Cancel the steps in flight, announced before the event that moves or ends the ceremony."""
    for step in fold.here:
        state = fold.row.steps[step.id]
        if state.status not in IN_FLIGHT:
            continue
        fold.row.drop_step_timers(step.id, state.phase)
        cancelled = state.cancelled()
        fold.row.set_step(step.id, cancelled)
        _executed(fold, step, cancelled)


def reset(fold: FoldContext, step: Step) -> None:
    """Set a step to PENDING when its state is entered; only its attempt number stays."""
    state = fold.row.steps[step.id]
    if state.attempt or state.status is not StepStatus.PENDING:
        fold.row.set_step(step.id, state.reset())


def published(
    fold: FoldContext,
    step: Step,
    publication: Publication,
    receipt: Mapping[str, Any],
    visit: int,
    *,
    late: bool = False,
) -> None:
    """Announce that the message of this visit is on its stream."""
    fold.row.set_step(step.id, fold.row.steps[step.id].published(visit))
    payload = _announced(fold, step, publication) | {
        "stream": _stream(receipt),
        "sequence": sequence if isinstance(sequence := receipt.get("sequence"), int) else 0,
        "duplicate": receipt.get("duplicate") is True,
    }
    if late:
        payload["late"] = True
    fold.event(PUBLISH_COMPLETED, payload)


def _stream(receipt: Mapping[str, Any]) -> str:
    name = receipt.get("stream")
    return clip(name, MAX_ID_CHARACTERS) if isinstance(name, str) else ""


def _announced(fold: FoldContext, step: Step, publication: Publication) -> dict[str, Any]:
    """Return the fields of an event that identify the message."""
    return {
        "instance_id": fold.row.base.instance_id,
        "step_id": step.id,
        "subject": publication.subject,
        "event_type": publication.event_type,
        "idempotency_key": publication.idempotency_key,
    }


def _executed(fold: FoldContext, step: Step, state: StepState) -> None:
    payload: dict[str, Any] = {
        "instance_id": fold.row.base.instance_id,
        "step_id": step.id,
        "status": _WORD[state.status],
        "current_state": fold.row.state,
        "attempt": state.attempt,
        "output": {} if state.output is None and state.status is not _COMPLETED else state.output,
    }
    if state.status is _FAILED:
        payload["error_code"] = state.error_code
        payload["error_message"] = state.error_message
    fold.judge_due = True
    fold.event(STEP_EXECUTED, payload)


def _request_too_large(size: int) -> Failed:
    return Failed(
        "request_too_large",
        f"the step request has {size} bytes, at most {MAX_REQUEST_BYTES} are written",
        retryable=False,
    )


def _row_full(size: int) -> Failed:
    return Failed(
        "output_too_large",
        f"with {size} more bytes the ceremony would hold more than {MAX_ROW_BYTES}",
        retryable=False,
    )
