"""Movement of a ceremony: automatic transitions, ready steps, failure (specification 12.4), the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables.definition import Definition, Step, Transition
from tables.effects import Ended
from tables.fold import step_life
from tables.fold.context import Decision, Evaluation, FoldContext
from tables.fold.retention import UNTIL_STUB_MS
from tables.guards import guard_steps, holds, is_human, is_unjudged
from tables.instance import CeremonyStatus, Instance, Phase, StepState, StepStatus
from tables.limits import MAX_TRANSITIONS, clip

# Steps of work (tables/work.py) of judging one guard, whatever its check, and of looking whether one step is ready; a
# look at few steps is not counted.
_GUARD_STEPS, _LOOK_STEPS, _FEW = 200, 10, 20
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


def advance(fold: FoldContext, completed: Step | None = None) -> None:
    """Move as far as possible: transitions first, then `on_failure`, then the steps that have become ready.

    Transitions are judged only at the moments of specification 12.1, which set `judge_due`. A step that finishes as it
    starts is judged in the same command. While PAUSED nothing moves. `completed` is the
    step that completed, where nothing else has happened: then only its direct successors can have become ready.
    """
    candidates = None if completed is None else _successors(fold, completed)
    while fold.row.moves():
        if fold.judge_due:
            fold.judge_due = _automatic(fold) or _on_failure(fold)
        if fold.judge_due or _start_ready(fold, candidates):
            candidates = None
            continue
        if not _seen_under_way(fold):
            _close(fold)
        return


def _automatic(fold: FoldContext) -> bool:
    """Apply the first transition, in definition order, whose guards all hold."""
    for transition in fold.definition.automatic_from.get(fold.row.state, ()):
        if _hold_in_time(fold, transition) if transition.guards else _all_done(fold, transition):
            apply(fold, transition)
            return True
    return False


def guards_hold(fold: FoldContext, transition: Transition) -> bool:
    return failing_guard(fold, transition) is None


def _hold_in_time(fold: FoldContext, transition: Transition) -> bool:
    """Return whether the guards hold; none is judged once the work of the command is spent."""
    if fold.work.left or not transition.guards:
        return guards_hold(fold, transition)
    fold.evaluations.append(Evaluation(transition, len(fold.effects), holds=False))
    return False


def failing_guard(fold: FoldContext, transition: Transition) -> tuple[str, str] | None:
    """Return the first guard that does not hold, with the reason; None when all do."""
    view = fold.view()
    failing: tuple[str, str] | None = None
    results: list[tuple[str, bool | None, str]] = []
    for name in transition.guards:
        guard = fold.definition.guards[name]
        fold.work.drain(_GUARD_STEPS)
        held, reason = holds(guard, view)
        if held:
            results.append((name, True, reason))
            continue
        failing = name, reason
        if is_unjudged(guard, reason):
            fold.unjudged[name] = in_full = view.in_full(name, reason)
            results.append((name, None, in_full))
        else:
            results.append((name, False, reason))
        break
    fold.evaluations.append(Evaluation(transition, len(fold.effects), failing is None, results))
    return failing


def _all_done(fold: FoldContext, transition: Transition) -> bool:
    """Return whether a guard-less transition may fire: selected steps are COMPLETED, and no step FAILED."""
    steps, selected = fold.row.steps, fold.row.base.selected
    for step in reversed(fold.here):  # the last one is most likely not done
        status = steps[step.id].status
        if status is not _COMPLETED and (status is _FAILED or not selected or step.id in selected):
            fold.evaluations.append(Evaluation(transition, len(fold.effects), False, (), step))  # noqa: FBT003
            return False
    fold.evaluations.append(Evaluation(transition, len(fold.effects), holds=True))
    return True


def _on_failure(fold: FoldContext) -> bool:
    """Apply the `on_failure` transition of a step that failed for good, where its guards hold."""
    for step, transition in fold.definition.ways_out.get(fold.row.state, ()):
        if fold.row.steps[step.id].status is _FAILED and _hold_in_time(fold, transition):
            apply(fold, transition)
            return True
    return False


def failed_steps(fold: FoldContext) -> list[str]:
    """List the steps of the present state that failed for good, in file order."""
    return [step.id for step in fold.here if fold.row.steps[step.id].status is _FAILED]


def by_trigger(fold: FoldContext, trigger: str) -> Transition | None:
    """Return the transition of this trigger that leaves the present state."""
    for transition in fold.definition.transitions_from.get(fold.row.state, ()):
        if transition.trigger == trigger:
            return transition
    return None


def _start_ready(fold: FoldContext, candidates: tuple[Step, ...] | None) -> bool:
    """Start the steps that are ready, among the candidates or all steps of the state.

    Return whether a started step has already finished, opened a gate or failed: then the ceremony may move again. Once
    the work of the command is spent, all ready steps fail before it may: one by one, each would be a look at all.
    """
    row, selected = fold.row, fold.row.base.selected
    looked_at = fold.here if candidates is None else candidates
    if len(looked_at) > _FEW:
        fold.work.drain(_LOOK_STEPS * len(looked_at))
    ended = False
    for step in looked_at:
        if row.steps[step.id].status is _PENDING and _ready(step, row.steps, selected):
            step_life.start(fold, step)
            if row.steps[step.id].phase is not _ASKED:
                if fold.work.left:
                    return True
                ended = True
    return ended


def _ready(step: Step, steps: Mapping[str, StepState], selected: tuple[str, ...]) -> bool:
    """Return whether a PENDING step may start by itself; a plain loop, for every command asks it of many steps."""
    for name in step.after:
        if steps[name].status is not _COMPLETED and (not selected or name in selected):
            return False
    return not selected or step.id in selected


def apply(fold: FoldContext, transition: Transition, who: dict[str, str] | None = None) -> None:
    """Leave the state, and enter the next one. `who`: actor, role and reason of a trigger."""
    row = fold.row
    if fold.applied >= MAX_TRANSITIONS:
        message = f"one command applied {MAX_TRANSITIONS} transitions, and would apply another one from {row.state}"
        end(fold, CeremonyStatus.FAILED, "endless_cycle", message)
        return
    fold.applied += 1
    step_life.cancel_in_flight(fold)
    fold.event(
        TRANSITION_APPLIED,
        {
            "instance_id": row.base.instance_id,
            "from_state": transition.from_state,
            "to_state": transition.to_state,
            "trigger": transition.trigger,
        },
        who,
    )
    fold.enter(transition.to_state)
    for step in fold.here:
        step_life.reset(fold, step)
    if fold.definition.states[transition.to_state].terminal:
        end(fold, CeremonyStatus.COMPLETED)


def _close(fold: FoldContext) -> None:
    """Fail a ceremony that cannot move while no step is in flight and nothing is awaited."""
    steps, failed = fold.row.steps, ""
    for step in fold.here:
        status = steps[step.id].status
        if status is _IN_PROGRESS or status is _WAITING:
            return
        if status is _FAILED and not failed:
            failed = step.id
    if failed:
        message = clip(f"step {failed} failed: {steps[failed].error_message}")
        end(fold, CeremonyStatus.FAILED, steps[failed].error_code, message)
    elif not open_guards(fold.row.peek(), fold.definition):
        message = f"all steps of {fold.row.state} have ended, and no transition can leave it"
        end(fold, CeremonyStatus.FAILED, "no_transition", message)


def open_guards(row: Instance, definition: Definition) -> list[str]:
    """List the guards of transitions leaving the state that people can still change.

    They are the human guards, and guards over a step of this state that was not selected and has not run.
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
    fold: FoldContext, status: CeremonyStatus, code: str = "", message: str = "", more: dict[str, Any] | None = None
) -> None:
    """End the ceremony: cancel the steps in flight, then announce the end."""
    row = fold.row
    step_life.cancel_in_flight(fold)
    row.end(status, code, message, UNTIL_STUB_MS)
    payload = dict(more or {})
    if code:
        payload |= {"error_code": code, "error_message": message}
    fold.lifecycle(_WORD[status], payload)
    fold.effects.append(Ended(id=fold.effect_id(), instance_id=row.base.instance_id, status=status.value))


def live_status(row: Instance, definition: Definition) -> CeremonyStatus:
    """Return RUNNING or WAITING_FOR_HUMAN, for a row that is neither ended nor PAUSED.

    WAITING_FOR_HUMAN: no step is IN_PROGRESS (asked, submitted, unreachable or in a back-off), and a person is awaited:
    a gate step is open, or a guard of a transition leaving the state is human or depends on an unselected step of this
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


def finish(fold: FoldContext) -> Decision:
    """Return the decision; the status of a live ceremony follows from its row."""
    if fold.decided is not None:
        return fold.decided
    if not fold.begun or not fold.row.changed:
        return Decision(fold.before, tuple(fold.effects), fold.note, fold.unjudged, fold.evaluations)
    row = fold.row
    if row.moves():
        status = _RUNNING if _seen_under_way(fold) else live_status(row.peek(), fold.definition)
        if status is not row.status:
            row.set_status(status)
    return Decision(row.build(), tuple(fold.effects), fold.note, fold.unjudged, fold.evaluations)


# -- shortcuts: they change the cost of an answer, never the answer


def _successors(fold: FoldContext, completed: Step) -> tuple[Step, ...]:
    """Return the steps that this completion alone can have made ready: all other ready steps have started."""
    return fold.definition.waiting_for[completed.id]


def _seen_under_way(fold: FoldContext) -> bool:
    """Return whether the step started last by this command is IN_PROGRESS, so that no other needs a look."""
    started = fold.started
    return started is not None and fold.row.steps[started.id].status is _IN_PROGRESS
