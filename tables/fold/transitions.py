"""How a ceremony moves: automatic transitions, ready steps, failing (specification 12.4), the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables.definition import Definition, Step, Transition
from tables.effects import Ended
from tables.fold import step_life
from tables.fold.context import Decision, FoldContext
from tables.guards import guard_steps, holds, is_human, is_unjudged
from tables.instance import CeremonyStatus, Instance, Phase, StepState, StepStatus
from tables.limits import MAX_TRANSITIONS, clip
from tables.timers import UNTIL_STUB

TRANSITION_APPLIED = "ceremony.transition.applied"
# By name once: on Python 3.11 each look-up of a member costs a call.
_PENDING, _COMPLETED, _FAILED = StepStatus.PENDING, StepStatus.COMPLETED, StepStatus.FAILED
_IN_PROGRESS, _WAITING = StepStatus.IN_PROGRESS, StepStatus.WAITING_FOR_HUMAN
_RUNNING, _ASKED = CeremonyStatus.RUNNING, Phase.ASKED
_WORD = {
    CeremonyStatus.COMPLETED: "completed",
    CeremonyStatus.FAILED: "failed",
    CeremonyStatus.CANCELLED: "cancelled",
    CeremonyStatus.TIMED_OUT: "timed_out",
}


def advance(turn: FoldContext, completed: Step | None = None) -> None:
    """Move as far as it goes now: transitions first, then `on_failure`, then the steps that have become ready.

    A step that ends, fails or opens its gate as it is started is settled in the same turn. While PAUSED nothing
    moves. Where all that has happened is that one step was `completed`, only those that wait for it can have become
    ready: in a ceremony that moves, every other one was started when it was.
    """
    row = turn.row
    candidates = None if completed is None else turn.definition.waiting_for[completed.id]
    while row.moves:
        if _automatic(turn) or _on_failure(turn) or _start_ready(turn, candidates):
            candidates = None
            continue
        if not _under_way(turn):
            _close(turn)
        return


def _automatic(turn: FoldContext) -> bool:
    """Apply the first transition, in definition order, whose guards all hold."""
    for transition in turn.definition.transitions_from.get(turn.row.state, ()):
        if guards_hold(turn, transition) if transition.guards else _all_done(turn):
            apply(turn, transition)
            return True
    return False


def guards_hold(turn: FoldContext, transition: Transition) -> bool:
    return failing_guard(turn, transition) is None


def failing_guard(turn: FoldContext, transition: Transition) -> tuple[str, str] | None:
    """The first guard that does not hold, with the reason; None when all do."""
    view = turn.view()
    for name in transition.guards:
        guard = turn.definition.guards[name]
        held, reason = holds(guard, view)
        if not held:
            if is_unjudged(guard, reason):
                turn.unjudged[name] = reason
            return name, reason
    return None


def _all_done(turn: FoldContext) -> bool:
    """Every selected step of the state is COMPLETED, and none at all FAILED: what lets a guard-less transition fire."""
    steps, selected = turn.row.steps, turn.row.base.selected
    for step in reversed(turn.here):  # the last one is the one to be done last
        status = steps[step.id].status
        if status is not _COMPLETED and (status is _FAILED or not selected or step.id in selected):
            return False
    return True


def _on_failure(turn: FoldContext) -> bool:
    """Apply the `on_failure` trigger of a step that has failed for good, where its guards hold."""
    for step, transition in turn.definition.ways_out.get(turn.row.state, ()):
        if turn.row.steps[step.id].status is _FAILED and guards_hold(turn, transition):
            apply(turn, transition)
            return True
    return False


def by_trigger(turn: FoldContext, trigger: str) -> Transition | None:
    """The transition of this trigger that leaves the present state."""
    for transition in turn.definition.transitions_from.get(turn.row.state, ()):
        if transition.trigger == trigger:
            return transition
    return None


def _start_ready(turn: FoldContext, candidates: tuple[Step, ...] | None) -> bool:
    """Start the steps whose predecessors are done, of these or of all; True when one is past the asking already.

    It ended, opened its gate, or failed and will be retried: each may move the ceremony, as an answer would.
    """
    row, selected = turn.row, turn.row.base.selected
    for step in turn.here if candidates is None else candidates:
        if row.steps[step.id].status is _PENDING and _ready(step, row.steps, selected):
            step_life.start(turn, step)
            if row.steps[step.id].phase is not _ASKED:
                return True
    return False


def _ready(step: Step, steps: Mapping[str, StepState], selected: tuple[str, ...]) -> bool:
    """Whether a PENDING step may start by itself; a plain loop, for each command asks it of every step."""
    for name in step.after:
        if steps[name].status is not _COMPLETED and (not selected or name in selected):
            return False
    return not selected or step.id in selected


def _under_way(turn: FoldContext) -> bool:
    """Whether what this command started last says already that a step of the state is IN_PROGRESS."""
    started = turn.started
    return started is not None and turn.row.steps[started.id].status is _IN_PROGRESS


def apply(turn: FoldContext, transition: Transition, who: dict[str, str] | None = None) -> None:
    """Leave the state, and enter the other one. `who`: the actor, role and reason of a trigger that was fired."""
    row = turn.row
    if turn.applied >= MAX_TRANSITIONS:
        message = f"more than {MAX_TRANSITIONS} transitions from one command, the last of them from {row.state}"
        end(turn, CeremonyStatus.FAILED, "endless_cycle", message)
        return
    turn.applied += 1
    step_life.cancel_in_flight(turn)
    turn.event(
        TRANSITION_APPLIED,
        {
            "instance_id": row.base.instance_id,
            "from_state": transition.from_state,
            "to_state": transition.to_state,
            "trigger": transition.trigger,
        },
        who,
    )
    turn.enter(transition.to_state)
    for step in turn.here:
        step_life.reset(turn, step)
    if turn.definition.states[transition.to_state].terminal:
        end(turn, CeremonyStatus.COMPLETED)


def _close(turn: FoldContext) -> None:
    """Nothing moves: when nothing is in flight or awaited either, the ceremony has failed."""
    steps, failed = turn.row.steps, ""
    for step in turn.here:
        status = steps[step.id].status
        if status is _IN_PROGRESS or status is _WAITING:
            return
        if status is _FAILED and not failed:
            failed = step.id
    if failed:
        message = clip(f"step {failed} failed: {steps[failed].error_message}")
        end(turn, CeremonyStatus.FAILED, steps[failed].error_code, message)
    elif not open_guards(turn.row.peek(), turn.definition):
        message = f"all steps of {turn.row.state} have ended and no transition leaving it can hold"
        end(turn, CeremonyStatus.FAILED, "no_transition", message)


def open_guards(row: Instance, definition: Definition) -> list[str]:
    """Guards of transitions leaving the state that people can still change.

    They are the human ones, and those over a step of this state that was not selected and has not run.
    """
    idle = {
        step.id
        for step in definition.steps_by_state.get(row.state, ())
        if row.selected and step.id not in row.selected and row.steps[step.id].status is StepStatus.PENDING
    }
    names = []
    for transition in definition.transitions_from.get(row.state, ()):
        for name in transition.guards:
            guard = definition.guards[name]
            if is_human(guard) or (idle and not idle.isdisjoint(guard_steps(guard, definition))):
                names.append(name)
    return list(dict.fromkeys(names))


def end(
    turn: FoldContext, status: CeremonyStatus, code: str = "", message: str = "", more: dict[str, Any] | None = None
) -> None:
    """Come to a terminal status: steps in flight are CANCELLED first, then the end is announced."""
    row = turn.row
    step_life.cancel_in_flight(turn)
    row.end(status, code, message, UNTIL_STUB)
    payload = dict(more or {})
    if code:
        payload |= {"error_code": code, "error_message": message}
    turn.lifecycle(_WORD[status], payload)
    turn.effects.append(Ended(id=turn.effect_id(), instance_id=row.base.instance_id, status=status.value))


def live_status(row: Instance, definition: Definition) -> CeremonyStatus:
    """RUNNING or WAITING_FOR_HUMAN, of a row that is neither ended nor PAUSED.

    WAITING_FOR_HUMAN: no step is IN_PROGRESS (asked, submitted, unreachable or in a back-off), and a person is awaited:
    a gate step is open, or a guard of a transition leaving the state is human or speaks of an unselected step of this
    state that only an operator can run. RUNNING: everything else.
    """
    waits = False
    for step in definition.steps_by_state.get(row.state, ()):
        status = row.steps[step.id].status
        if status is _IN_PROGRESS:
            return _RUNNING
        waits = waits or status is _WAITING
    if waits or open_guards(row, definition):
        return CeremonyStatus.WAITING_FOR_HUMAN
    return _RUNNING


def finish(turn: FoldContext) -> Decision:
    """The decision of a turn; the status of a live ceremony follows from its row."""
    row = turn.row
    if not row.changed:
        return Decision(row.base, tuple(turn.effects), turn.note, turn.unjudged)
    if row.moves:
        row.set_status(_RUNNING if _under_way(turn) else live_status(row.peek(), turn.definition))
    return Decision(row.build(), tuple(turn.effects), turn.note, turn.unjudged)
