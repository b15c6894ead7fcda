"""Operations of people: triggers, cancel, pause, resume, and running or retrying a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tables import roles
from tables.commands import Cancel, Pause, Resume, RetryStep, RunStep, Trigger
from tables.definition import Step
from tables.fold import refusals, step_life
from tables.fold.agent_answers import take_asked_triggers
from tables.fold.context import FoldContext
from tables.fold.transitions import advance, apply, by_trigger, end, failed_steps, failing_guard
from tables.instance import IN_FLIGHT, CeremonyStatus, Pauser, StepStatus
from tables.limits import MAX_ID_CHARACTERS, MAX_TEXT_CHARACTERS, clip
from tables.timers import millis

OperatorCommand = Cancel | Pause | Resume | RetryStep | RunStep | Trigger


# An operator lets a step run, or run again.
STEP_ORDERED = "ceremony.step.ordered"
# The action of each operation on a ceremony as a whole.
_WHOLE: Mapping[type, str] = {Cancel: roles.CANCEL, Pause: roles.PAUSE, Resume: roles.RESUME}
# Endings that a retry opens again.
_REOPENED = frozenset({CeremonyStatus.FAILED, CeremonyStatus.TIMED_OUT})


def _who(command: OperatorCommand) -> dict[str, str]:
    return {
        "actor": clip(command.actor, MAX_ID_CHARACTERS),
        "role": clip(command.role, MAX_ID_CHARACTERS),
        "reason": clip(command.reason, MAX_TEXT_CHARACTERS),
    }


def forbidden(fold: FoldContext, command: OperatorCommand) -> tuple[str, str] | None:
    """Return why the operation is not open to its actor: none is named, or the role may not use its action."""
    if isinstance(command, Pause) and command.by_engine:
        return None
    if not command.actor.strip():
        return refusals.ACTOR_REQUIRED, "an operation needs an actor"
    refused = (roles.refusal(fold.definition, command.role, action) for action in _actions(fold, command))
    return next(filter(None, refused), None)


def _actions(fold: FoldContext, command: OperatorCommand) -> Sequence[str]:
    """Return the actions that the actor's role must allow."""
    if isinstance(command, Trigger):
        return (command.trigger,)
    if isinstance(command, RunStep):
        return (command.step_id,)
    if isinstance(command, RetryStep):
        return (command.step_id,) if command.step_id else [step.id for step in _cancelled(fold)]
    return (_WHOLE[type(command)],)


def _may(fold: FoldContext, command: OperatorCommand) -> bool:
    """Return whether the operation is open to its actor; else refuse."""
    refusal = forbidden(fold, command)
    if refusal is not None:
        fold.refuse(command, *refusal)
    return refusal is None


def _refused_when(fold: FoldContext, command: OperatorCommand, *, paused: bool = False) -> bool:
    """Refuse an operation on an ended ceremony, or (`paused`) on one that is PAUSED."""
    if fold.row.ended:
        message = f"the ceremony is {fold.row.status}"
        fold.refuse(command, refusals.ALREADY_ENDED, message)
        return True
    if paused and fold.row.paused:
        fold.refuse(command, refusals.PAUSED, "the ceremony is PAUSED; resume it first")
        return True
    return False


def trigger(fold: FoldContext, command: Trigger) -> None:
    """Take the transition of this trigger, where its guards hold and the actor's role allows it."""
    if not _may(fold, command) or _refused_when(fold, command, paused=True):
        return
    transition = by_trigger(fold, command.trigger)
    if transition is None:
        message = f"no transition leaving {fold.row.state} has the trigger {clip(command.trigger, 64)!r}"
        fold.refuse(command, refusals.TRIGGER_UNKNOWN, message)
        return
    failing = failing_guard(fold, transition)
    if failing is not None:
        fold.refuse(command, refusals.GUARDS_NOT_MET, f"guard `{failing[0]}`: {failing[1]}")
        return
    failed = ", ".join(failed_steps(fold))
    apply(fold, transition, _who(command) | ({"past_failed_steps": clip(failed)} if failed else {}))
    advance(fold)


def cancel(fold: FoldContext, command: Cancel) -> None:
    """End the ceremony as CANCELLED."""
    if not _may(fold, command):
        return
    if fold.row.status is CeremonyStatus.CANCELLED:
        fold.note = "duplicate"
    elif not _refused_when(fold, command):
        end(fold, CeremonyStatus.CANCELLED, more=_who(command))


def pause(fold: FoldContext, command: Pause) -> None:
    """Stop step and gate timers; until the resume answers are recorded and nothing starts."""
    if not _may(fold, command):
        return
    if fold.row.paused:
        fold.note = "duplicate"
    elif not _refused_when(fold, command):
        who = _who(command)
        fold.row.pause(Pauser(**who))
        fold.lifecycle("paused", who)


def resume(fold: FoldContext, command: Resume) -> None:
    """Let timers continue, and act on the answers that came during the pause."""
    if not _may(fold, command) or _refused_when(fold, command):
        return
    if not fold.row.paused:
        fold.refuse(command, refusals.NOT_PAUSED, "the ceremony is not PAUSED")
        return
    fold.row.resume()
    fold.lifecycle("resumed", _who(command))
    take_asked_triggers(fold)
    fold.judge_due = True
    advance(fold)


def retry_step(fold: FoldContext, command: RetryStep) -> None:
    """Give a FAILED step a new budget of attempts. A FAILED or TIMED_OUT ceremony opens again, with a new time limit.

    In an ended ceremony every step of the state that has run may be retried: after `no_transition` none has failed.
    After a time-out no step need be named.
    """
    if not command.step_id and fold.row.status is CeremonyStatus.TIMED_OUT:
        _retry_cancelled(fold, command)
        return
    step = _step_here(fold, command)
    if step is None:
        return
    if fold.row.status not in _REOPENED and _refused_when(fold, command, paused=True):
        return
    status = fold.row.steps[step.id].status
    if status in IN_FLIGHT:
        fold.refuse(command, refusals.STEP_IN_FLIGHT, f"step {step.id} is {status}")
    elif status is not StepStatus.FAILED and (status is StepStatus.PENDING or not fold.row.ended):
        fold.refuse(command, refusals.STEP_NOT_FAILED, f"step {step.id} is {status}; only a FAILED step can be retried")
    else:
        if fold.row.ended:
            _reopen(fold, command)
        _order(fold, command, step, "retry")
        advance(fold)


def _retry_cancelled(fold: FoldContext, command: RetryStep) -> None:
    """Open a ceremony that timed out again; each step that the time-out cancelled gets a new attempt.

    Steps that had concluded while the ceremony was PAUSED are judged, as at a resume.
    """
    if not _may(fold, command):
        return
    cancelled = _cancelled(fold)
    _reopen(fold, command)
    for step in cancelled:
        _order(fold, command, step, "retry")
    fold.judge_due = True
    advance(fold)


def _cancelled(fold: FoldContext) -> list[Step]:
    """Return the steps of the state that its end cancelled, in file order."""
    return [step for step in fold.here if fold.row.steps[step.id].status is StepStatus.CANCELLED]


def _reopen(fold: FoldContext, command: RetryStep) -> None:
    """Open an ended ceremony again; steps that its end cancelled will run again too."""
    fold.row.reopen(millis(fold.definition.timeouts.ceremony_max))
    for other in _cancelled(fold):
        step_life.reset(fold, other)
    named = {"step_id": command.step_id} if command.step_id else {}
    fold.lifecycle("resumed", _who(command) | named)


def run_step(fold: FoldContext, command: RunStep) -> None:
    """Run a step that the start did not select."""
    step = _step_here(fold, command)
    if step is None or _refused_when(fold, command, paused=True):
        return
    status = fold.row.steps[step.id].status
    if fold.selects(step.id):
        fold.refuse(command, refusals.STEP_SELECTED, f"step {step.id} is selected, and starts by itself")
    elif status is not StepStatus.PENDING:
        fold.refuse(command, refusals.STEP_NOT_PENDING, f"step {step.id} is {status}")
    else:
        _order(fold, command, step, "run")
        advance(fold)


def _order(fold: FoldContext, command: RetryStep | RunStep, step: Step, operation: str) -> None:
    """Announce the order and its actor, and let the step run."""
    fold.event(
        STEP_ORDERED,
        {
            "instance_id": fold.row.base.instance_id,
            "step_id": step.id,
            "current_state": fold.row.state,
            "operation": operation,
            "attempt": fold.row.steps[step.id].attempt + 1,
            **_who(command),
        },
    )
    step_life.start(fold, step, new_budget=True)


def _step_here(fold: FoldContext, command: RetryStep | RunStep) -> Step | None:
    """Return the step, if the actor may use it and it belongs to the present state; else refuse."""
    step = fold.definition.steps.get(command.step_id)
    if not _may(fold, command):
        return None
    if not command.step_id:
        fold.refuse(
            command, refusals.STEP_UNKNOWN, "a step must be named; only a TIMED_OUT ceremony can be retried without one"
        )
    elif step is None:
        message = f"{fold.definition.name} has no step {clip(command.step_id, 64)!r}"
        fold.refuse(command, refusals.STEP_UNKNOWN, message)
    elif step.state != fold.row.state:
        message = f"step {step.id} belongs to {step.state}; the ceremony is in {fold.row.state}"
        fold.refuse(command, refusals.WRONG_STATE, message)
    else:
        return step
    return None
