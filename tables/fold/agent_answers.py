"""What the world answers to an attempt: outcomes of step agents, and results of single agents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from tables import roles
from tables.commands import AgentResult, StepOutcome
from tables.definition import SYSTEM_ROLE, Step, Transition
from tables.fold import step_life
from tables.fold.context import FoldContext
from tables.fold.next_row import answer_weight
from tables.fold.transitions import advance, apply, by_trigger, guards_hold
from tables.instance import AgentAnswer, Phase, StepState, StepStatus
from tables.kinds import Completed, Failed
from tables.limits import MAX_ANSWERS, MAX_ID, MAX_ROW, MAX_TEXT, Unfit, clip, weigh
from tables.timers import ASK

_SUBMITTED = Phase.SUBMITTED
_LIVE = frozenset({Phase.ASKED, Phase.UNREACHABLE, _SUBMITTED})


def step_outcome(turn: FoldContext, command: StepOutcome) -> None:
    """A step agent speaks of one attempt; what is not of the live attempt changes nothing."""
    step = turn.definition.steps.get(command.step_id)
    handler = _OUTCOMES.get(command.outcome)
    if step is None or handler is None:
        turn.note = "unknown_step" if step is None else "unknown_outcome"
        return
    state = turn.row.steps[step.id]
    turn.note = _stale(state, command.attempt)
    if turn.note:
        _published_late(turn, step, state, command)
        return
    if state.phase is _SUBMITTED and command.outcome != "completed":
        turn.note = "duplicate"  # the attempt's request was performed twice; its first answer counts
        return
    handler(turn, step, command)


def _stale(state: StepState, attempt: int) -> str:
    """Why an answer to this attempt comes too late, or "" when the attempt is live."""
    if attempt != state.attempt:
        return "stale_attempt"
    if state.phase in _LIVE:
        return ""
    return "stale_attempt" if state.phase is Phase.BACKOFF else "finished_step"


def _published_late(turn: FoldContext, step: Step, state: StepState, command: StepOutcome) -> None:
    """A publish that happened is announced although its attempt was over, once a visit (specification 9.8)."""
    if command.outcome != "completed" or not command.published:
        return
    visit = _visit_published(turn, command.output, step)
    publication = turn.publication(step, visit)
    if not visit or publication is None or command.output.get("idempotency_key") != publication.idempotency_key:
        return
    if state.announced < visit and command.attempt <= state.attempt:
        step_life.published(turn, step, publication, command.published, visit, late=True)
        turn.note = ""


def _visit_published(turn: FoldContext, output: Any, step: Step) -> int:
    """The visit that the key in an output ends with: the state may have been entered again since. Or 0."""
    key = output.get("idempotency_key") if isinstance(output, dict) else None
    number = str(key).rpartition("/")[2]
    latest = turn.row.visits.get(step.state, 0)
    if not number.isascii() or not number.isdecimal() or len(number) > len(str(latest)):
        return 0
    return int(number) if int(number) <= latest else 0


def _completed(turn: FoldContext, step: Step, command: StepOutcome) -> None:
    kind = turn.kind(step)
    visit = turn.row.visits.get(step.state, 0)
    publication = turn.publication(step, visit)
    if publication is not None and turn.row.steps[step.id].announced < visit:
        step_life.published(turn, step, publication, command.published, visit)
    verdict = kind.completed(turn.context(step), command.output)
    if isinstance(verdict, Completed):
        measured = command.size if verdict.output is command.output else 0
        step_life.complete(turn, step, verdict.output, measured)
    elif isinstance(verdict, Failed):
        step_life.fail(turn, step, verdict)
    else:
        turn.note = "undecided"
        return
    advance(turn, step)


def _failed(turn: FoldContext, step: Step, command: StepOutcome) -> None:
    code = command.error_code or "failed"
    step_life.fail(turn, step, Failed(code, command.error_message, command.retryable is True))
    advance(turn)


def _waiting(turn: FoldContext, step: Step, command: StepOutcome) -> None:
    step_life.open_gate(turn, step, command.output)
    advance(turn)


def _submitted(turn: FoldContext, step: Step, command: StepOutcome) -> None:
    """The neighbour has it; results that overtook this are judged now."""
    row, state = turn.row, turn.row.steps[step.id]
    row.drop_timer(ASK + step.id)
    name = clip(command.deliberation_id, MAX_ID)
    row.set_step(step.id, replace(state, phase=Phase.SUBMITTED, deliberation_id=name))
    if state.answers:
        _judge(turn, step)


def _unreachable(turn: FoldContext, step: Step, _command: StepOutcome) -> None:
    if turn.row.steps[step.id].phase is Phase.UNREACHABLE:
        turn.note = "duplicate"
        return
    step_life.unreachable(turn, step)
    if turn.row.steps[step.id].answers:
        _judge(turn, step)  # it was reached after all: results came


_OUTCOMES: dict[str, Callable[[FoldContext, Step, StepOutcome], None]] = {
    "completed": _completed,
    "failed": _failed,
    "waiting": _waiting,
    "submitted": _submitted,
    "unreachable": _unreachable,
}


def agent_result(turn: FoldContext, command: AgentResult) -> None:
    """One agent's result: gathered once per agent and attempt; a `trigger` with it asks for that transition.

    Of an agent that the step does not ask nothing counts, its trigger neither; nor does a trigger count in a state or
    a visit that came after the one in which the agent was asked.
    """
    step = turn.definition.steps.get(command.step_id)
    if step is None:
        turn.note = "unknown_step"
        return
    state = turn.row.steps[step.id]
    turn.note = _stale(state, command.attempt)
    agent_id = clip(command.agent_id, MAX_ID)
    if not turn.kind(step).accepts(turn.context(step), agent_id):
        turn.note = turn.note or "unknown_agent"
        return
    ended = not turn.note and _gather(turn, step, state, command, agent_id)
    if command.trigger and command.attempt == state.attempt and not turn.row.knows(command.command_id):
        _triggered(turn, step, command)
        ended = True
    if ended:
        advance(turn)


def _gather(turn: FoldContext, step: Step, state: StepState, command: AgentResult, agent_id: str) -> bool:
    """Record the result; True when it ended the attempt. Until the submission is settled nothing is judged."""
    if agent_id in state.answers or len(state.answers) >= MAX_ANSWERS:
        turn.note = "duplicate"
        return False
    try:
        size = weigh(command.value, command.size, f"the result of {agent_id}")
    except Unfit as error:
        step_life.fail(turn, step, Failed(error.code, error.message))
        return True
    answer = AgentAnswer(
        clip(command.role, MAX_ID),
        command.value,
        clip(command.error_code, MAX_ID),
        clip(command.error_message, MAX_TEXT),
        size,
    )
    weight = answer_weight(agent_id, answer)
    if turn.row.size + weight > MAX_ROW:
        message = f"with the result of {agent_id} the ceremony would hold more than {MAX_ROW} bytes"
        step_life.fail(turn, step, Failed("output_too_large", message, retryable=False))
        return True
    answers = {**state.answers, agent_id: answer}
    turn.row.set_step(step.id, replace(state, answers=answers, gathered=state.gathered + weight))
    return state.phase is not Phase.ASKED and _judged(turn, step)


def _judge(turn: FoldContext, step: Step) -> None:
    if _judged(turn, step):
        advance(turn)


def _judged(turn: FoldContext, step: Step) -> bool:
    context = turn.context(step)
    return step_life.conclude(turn, step, turn.kind(step).gathered(context, context.state.answers))


def _triggered(turn: FoldContext, step: Step, command: AgentResult) -> None:
    """The transition an agent asks for, as role SYSTEM; where it may not be, nothing moves and nobody is told."""
    row = turn.row
    here = step.state == row.state and row.steps[step.id].status is not StepStatus.PENDING
    transition = by_trigger(turn, command.trigger) if here else None
    if not row.moves or transition is None or not _system_may(turn, transition):
        turn.note = turn.note or "trigger_ignored"
        return
    if command.command_id:
        row.remember(command.command_id)
    apply(turn, transition, {"actor": clip(command.agent_id, MAX_ID), "role": SYSTEM_ROLE, "reason": ""})
    turn.note = ""


def _system_may(turn: FoldContext, transition: Transition) -> bool:
    return roles.allows(turn.definition, SYSTEM_ROLE, transition.trigger) and guards_hold(turn, transition)
