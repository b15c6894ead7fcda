"""What people ask of a ceremony as a whole: triggers, cancel, pause, resume, and running or retrying a step."""

from __future__ import annotations

from tables import roles
from tables.commands import Cancel, Pause, Resume, RetryStep, RunStep, Trigger
from tables.definition import Step
from tables.fold import refusals, step_life
from tables.fold.context import FoldContext
from tables.fold.transitions import advance, apply, by_trigger, end, failing_guard
from tables.instance import IN_FLIGHT, CeremonyStatus, Pauser, StepStatus
from tables.limits import MAX_ID, MAX_TEXT, clip
from tables.timers import millis

Operation = Cancel | Pause | Resume | RetryStep | RunStep | Trigger


# An operator has a step run again, or run at all.
STEP_ORDERED = "ceremony.step.ordered"


def _who(command: Operation) -> dict[str, str]:
    return {
        "actor": clip(command.actor, MAX_ID),
        "role": clip(command.role, MAX_ID),
        "reason": clip(command.reason, MAX_TEXT),
    }


def _may(fold: FoldContext, command: Operation, action: str) -> bool:
    """Whether an actor is named and its role allows `action`: a step id, a trigger, or cancel, pause, resume."""
    if not command.actor.strip():
        fold.refuse(command, refusals.ACTOR_REQUIRED, "an operation needs an actor")
        return False
    refusal = roles.refusal(fold.definition, command.role, action)
    if refusal is not None:
        fold.refuse(command, *refusal)
    return refusal is None


def _refused_when(fold: FoldContext, command: Operation, *, paused: bool = False) -> bool:
    """Refuse what cannot be asked of an ended ceremony, or (`paused`) of one that is PAUSED."""
    if fold.row.ended:
        message = f"the ceremony is {fold.row.status}"
        fold.refuse(command, refusals.ALREADY_ENDED, message)
        return True
    if paused and fold.row.paused:
        fold.refuse(command, refusals.PAUSED, "the ceremony is PAUSED; resume it first")
        return True
    return False


def trigger(fold: FoldContext, command: Trigger) -> None:
    """Move by the transition of this name, where its guards hold and the actor's role allows it."""
    if not _may(fold, command, command.trigger) or _refused_when(fold, command, paused=True):
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
    apply(fold, transition, _who(command))
    advance(fold)


def cancel(fold: FoldContext, command: Cancel) -> None:
    """End the ceremony as CANCELLED."""
    if not _may(fold, command, roles.CANCEL):
        return
    if fold.row.status is CeremonyStatus.CANCELLED:
        fold.note = "duplicate"
    elif not _refused_when(fold, command):
        end(fold, CeremonyStatus.CANCELLED, more=_who(command))


def pause(fold: FoldContext, command: Pause) -> None:
    """Stop step and gate timers; from now on answers are recorded, and nothing starts."""
    if not command.by_engine and not _may(fold, command, roles.PAUSE):
        return
    if fold.row.paused:
        fold.note = "duplicate"
    elif not _refused_when(fold, command):
        who = _who(command)
        fold.row.pause(Pauser(**who))
        fold.lifecycle("paused", who)


def resume(fold: FoldContext, command: Resume) -> None:
    """Timers go on with their rest, and what the answers of the pause call for happens now."""
    if not _may(fold, command, roles.RESUME) or _refused_when(fold, command):
        return
    if not fold.row.paused:
        fold.refuse(command, refusals.NOT_PAUSED, "the ceremony is not PAUSED")
        return
    fold.row.resume()
    fold.lifecycle("resumed", _who(command))
    advance(fold)


def retry_step(fold: FoldContext, command: RetryStep) -> None:
    """Give a FAILED step a new budget of attempts. A FAILED ceremony is open again, with new time for the whole.

    In a FAILED ceremony any step of the state that has run may be retried: after `no_transition` none has failed.
    """
    step = _step_here(fold, command)
    if step is None:
        return
    if fold.row.status is not CeremonyStatus.FAILED and _refused_when(fold, command, paused=True):
        return
    status = fold.row.steps[step.id].status
    if status in IN_FLIGHT:
        fold.refuse(command, refusals.STEP_IN_FLIGHT, f"step {step.id} is {status}")
    elif status is not StepStatus.FAILED and (status is StepStatus.PENDING or not fold.row.ended):
        fold.refuse(command, refusals.STEP_NOT_FAILED, f"step {step.id} is {status}, not FAILED")
    else:
        if fold.row.ended:
            _reopen(fold, command, step)
        _order(fold, command, step, "retry")


def _reopen(fold: FoldContext, command: RetryStep, step: Step) -> None:
    """Open a FAILED ceremony again: steps that its end cancelled will run again too."""
    fold.row.reopen(millis(fold.definition.timeouts.ceremony_max))
    for other in fold.here:
        if fold.row.steps[other.id].status is StepStatus.CANCELLED:
            step_life.reset(fold, other)
    fold.lifecycle("resumed", _who(command) | {"step_id": step.id})


def run_step(fold: FoldContext, command: RunStep) -> None:
    """Run a step that the start did not select."""
    step = _step_here(fold, command)
    if step is None or _refused_when(fold, command, paused=True):
        return
    status = fold.row.steps[step.id].status
    if fold.selects(step.id):
        fold.refuse(command, refusals.STEP_SELECTED, f"step {step.id} runs by itself")
    elif status is not StepStatus.PENDING:
        fold.refuse(command, refusals.STEP_NOT_PENDING, f"step {step.id} is {status}")
    else:
        _order(fold, command, step, "run")


def _order(fold: FoldContext, command: RetryStep | RunStep, step: Step, operation: str) -> None:
    """Say who wants the step to run, and let it run."""
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
    advance(fold)


def _step_here(fold: FoldContext, command: RetryStep | RunStep) -> Step | None:
    """The step, when the actor may use it and it belongs to the present state; else the command is refused."""
    step = fold.definition.steps.get(command.step_id)
    if not _may(fold, command, command.step_id):
        return None
    if step is None:
        message = f"{fold.definition.name} has no step {clip(command.step_id, 64)!r}"
        fold.refuse(command, refusals.STEP_UNKNOWN, message)
    elif step.state != fold.row.state:
        message = f"step {step.id} belongs to {step.state}, the ceremony is in {fold.row.state}"
        fold.refuse(command, refusals.WRONG_STATE, message)
    else:
        return step
    return None
