"""Answers to an attempt: outcomes of step agents, and results of single agents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tables import roles
from tables.commands import AgentResult, StepOutcome
from tables.definition import SYSTEM_ROLE, Step, Transition
from tables.fold import step_life
from tables.fold.context import FoldContext
from tables.fold.transitions import advance, apply, by_trigger, failed_steps, guards_hold
from tables.instance import AgentAnswer, AskedTrigger, Phase, StepState, StepStatus
from tables.kinds import Completed, Failed
from tables.limits import (
    MAX_ANSWERS,
    MAX_COUNTED_BYTES,
    MAX_ID_CHARACTERS,
    MAX_ROW_BYTES,
    MAX_TEXT_CHARACTERS,
    Unfit,
    clip,
    clip_bytes,
    weigh,
)
from tables.timers import ASK

_SUBMITTED = Phase.SUBMITTED
# The message of a failed agent may always take so many bytes, as long as the row has them.
_LEAST_MESSAGE_BYTES = 512
_LIVE = frozenset({Phase.ASKED, Phase.UNREACHABLE, _SUBMITTED})


def step_outcome(fold: FoldContext, command: StepOutcome) -> None:
    """Fold the outcome of one attempt; outcomes of other attempts than the live one change nothing."""
    step = fold.definition.steps.get(command.step_id)
    handler = _OUTCOMES.get(command.outcome)
    if step is None or handler is None:
        fold.note = "unknown_step" if step is None else "unknown_outcome"
        return
    state = fold.row.steps[step.id]
    fold.note = _stale(state, command.attempt)
    if fold.note:
        _published_late(fold, step, state, command)
        return
    if state.phase is _SUBMITTED and command.outcome != "completed":
        fold.note = "duplicate"  # the request was performed twice; its first answer counts
        return
    handler(fold, step, command)


def _stale(state: StepState, attempt: int) -> str:
    """Return why an answer to this attempt comes too late, or "" when the attempt is live."""
    if attempt != state.attempt:
        return "stale_attempt"
    if state.phase in _LIVE:
        return ""
    return "stale_attempt" if state.phase is Phase.BACKOFF else "finished_step"


def _published_late(fold: FoldContext, step: Step, state: StepState, command: StepOutcome) -> None:
    """Announce a message that was sent although its attempt was over, once a visit (specification 9.8)."""
    if command.outcome != "completed" or not command.published:
        return
    visit = _visit_published(fold, command.output, step)
    publication = fold.publication(step, visit)
    if not visit or publication is None or command.output.get("idempotency_key") != publication.idempotency_key:
        return
    if state.announced < visit and command.attempt <= state.attempt:
        step_life.published(fold, step, publication, command.published, visit, late=True)
        fold.note = ""


def _visit_published(fold: FoldContext, output: Any, step: Step) -> int:
    """Return the visit at the end of the key in an output, or 0. The state may have been entered again since."""
    key = output.get("idempotency_key") if isinstance(output, dict) else None
    number = str(key).rpartition("/")[2]
    latest = fold.row.visits.get(step.state, 0)
    if not number.isascii() or not number.isdecimal() or len(number) > len(str(latest)):
        return 0
    return int(number) if int(number) <= latest else 0


def _completed(fold: FoldContext, step: Step, command: StepOutcome) -> None:
    if step.publishes:
        _announce(fold, step, command)
    verdict = fold.kind(step).completed(fold.context(step), command.output)
    if isinstance(verdict, Completed):
        measured = command.size if verdict.output is command.output else 0
        step_life.complete(fold, step, verdict.output, measured)
    elif isinstance(verdict, Failed):
        step_life.fail(fold, step, verdict)
    else:
        fold.note = "undecided"
        return
    advance(fold, step)


def _announce(fold: FoldContext, step: Step, command: StepOutcome) -> None:
    """Announce the message of this visit, unless it is announced."""
    visit = fold.row.visits.get(step.state, 0)
    publication = fold.publication(step, visit)
    if publication is not None and fold.row.steps[step.id].announced < visit:
        step_life.published(fold, step, publication, command.published, visit)


def _failed(fold: FoldContext, step: Step, command: StepOutcome) -> None:
    code = command.error_code or "failed"
    step_life.fail(fold, step, Failed(code, command.error_message, command.retryable is True))
    advance(fold)


def _waiting(fold: FoldContext, step: Step, command: StepOutcome) -> None:
    step_life.open_gate(fold, step, command.output)
    advance(fold)


def _submitted(fold: FoldContext, step: Step, command: StepOutcome) -> None:
    """Record that the neighbour took the attempt, and judge results that came first."""
    row, state = fold.row, fold.row.steps[step.id]
    row.drop_timer(ASK + step.id)
    name = clip_bytes(clip(command.deliberation_id, MAX_ID_CHARACTERS), MAX_COUNTED_BYTES - row.size)
    row.set_step(step.id, state.submitted(name))
    if state.answers:
        _judge(fold, step)


def _unreachable(fold: FoldContext, step: Step, command: StepOutcome) -> None:
    if fold.row.steps[step.id].phase is Phase.UNREACHABLE:
        fold.note = "duplicate"
        return
    step_life.unreachable(fold, step, command.error_code, command.error_message)
    if fold.row.steps[step.id].answers:
        _judge(fold, step)  # the neighbour took it after all: results came


_OUTCOMES: dict[str, Callable[[FoldContext, Step, StepOutcome], None]] = {
    "completed": _completed,
    "failed": _failed,
    "waiting": _waiting,
    "submitted": _submitted,
    "unreachable": _unreachable,
}


def agent_result(fold: FoldContext, command: AgentResult) -> None:
    """Gather one agent's result, once per agent and attempt; a `trigger` in it requests that transition.

    Nothing counts from an agent that the step does not ask, not even its trigger. A trigger counts only in the state
    and visit in which the agent was asked.
    """
    step = fold.definition.steps.get(command.step_id)
    if step is None:
        fold.note = "unknown_step"
        return
    state = fold.row.steps[step.id]
    fold.note = _stale(state, command.attempt)
    agent_id = clip(command.agent_id, MAX_ID_CHARACTERS)
    if not fold.kind(step).accepts(fold.context(step), agent_id):
        fold.note = fold.note or "unknown_agent"
        return
    ended = not fold.note and _gather(fold, step, state, command, agent_id)
    if command.trigger and command.attempt == state.attempt and not fold.row.knows(command.command_id):
        _triggered(fold, step, command)
        ended = True
    if ended:
        advance(fold)


def _gather(fold: FoldContext, step: Step, state: StepState, command: AgentResult, agent_id: str) -> bool:
    """Record the result; True when it ended the attempt. Nothing is judged until the submission is known."""
    if agent_id in state.answers or len(state.answers) >= MAX_ANSWERS:
        fold.note = "duplicate"
        return False
    try:
        size = weigh(command.value, command.size, f"the result of {agent_id}")
    except Unfit as error:
        step_life.fail(fold, step, Failed(error.code, error.message))
        return True
    answer = _answer(command, size, agent_id, fold.row.size)
    if answer is None:
        message = f"with the result of {agent_id} the ceremony would hold more than {MAX_ROW_BYTES} bytes"
        step_life.fail(fold, step, Failed("output_too_large", message, retryable=False))
        return True
    fold.row.set_step(step.id, state.answered(agent_id, answer))
    return state.phase is not Phase.ASKED and _judged(fold, step)


def _answer(command: AgentResult, size: int, agent_id: str, row_size: int) -> AgentAnswer | None:
    """Return the answer, its message cut where the row is nearly full; None where the row has no room for it.

    Messages share the first half of a row, so that those of many failed agents leave room for other answers.
    """
    role, code = clip(command.role, MAX_ID_CHARACTERS), clip(command.error_code, MAX_ID_CHARACTERS)
    message = clip(command.error_message, MAX_TEXT_CHARACTERS)
    bare = row_size + AgentAnswer(role, command.value, code, "", size).weight(agent_id)
    if message:
        message = clip_bytes(message, min(MAX_ROW_BYTES - bare, max(MAX_ROW_BYTES // 2 - bare, _LEAST_MESSAGE_BYTES)))
    return AgentAnswer(role, command.value, code, message, size) if bare <= MAX_ROW_BYTES else None


def _judge(fold: FoldContext, step: Step) -> None:
    if _judged(fold, step):
        advance(fold)


def _judged(fold: FoldContext, step: Step) -> bool:
    context = fold.context(step)
    return step_life.conclude(fold, step, fold.kind(step).gathered(context, context.state.answers))


def _triggered(fold: FoldContext, step: Step, command: AgentResult) -> None:
    """Apply the transition that an agent requests, or keep it until the resume; ignore it where it is not allowed."""
    row = fold.row
    asked = AskedTrigger(
        step.id, clip(command.agent_id, MAX_ID_CHARACTERS), command.trigger, row.visits.get(step.state, 0)
    )
    transition = _asked_transition(fold, asked)
    if transition is None or not (row.paused or _moved_by(fold, asked, transition)):
        fold.note = fold.note or "trigger_ignored"
        return
    if row.paused:
        row.keep_trigger(asked)
    if command.command_id:
        row.remember(command.command_id)
    fold.note = ""


def take_asked_triggers(fold: FoldContext) -> None:
    """Judge the triggers that came during the pause, in order; one that asks for another state or visit is dropped."""
    for asked in fold.row.take_asked_triggers():
        transition = _asked_transition(fold, asked)
        if transition is not None:
            _moved_by(fold, asked, transition)


def _asked_transition(fold: FoldContext, asked: AskedTrigger) -> Transition | None:
    """Return the transition that an agent may ask for in the role SYSTEM, in the visit in which it was asked."""
    row, step = fold.row, fold.definition.steps[asked.step_id]
    here = step.state == row.state and row.steps[step.id].status is not StepStatus.PENDING
    if row.ended or not here or row.visits.get(step.state, 0) != asked.visit:
        return None
    transition = by_trigger(fold, asked.trigger)
    allowed = transition is not None and roles.allows(fold.definition, SYSTEM_ROLE, transition.trigger)
    return transition if allowed else None


def _moved_by(fold: FoldContext, asked: AskedTrigger, transition: Transition) -> bool:
    """Apply the transition where its guards hold; without guards, never past a failed step. Return whether it moved."""
    if not guards_hold(fold, transition) or (not transition.guards and failed_steps(fold)):
        return False
    apply(fold, transition, {"actor": asked.agent_id, "role": SYSTEM_ROLE, "reason": ""})
    return True
