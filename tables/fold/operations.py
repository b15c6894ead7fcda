"""Operations of people: triggers, cancel, pause, resume, and running or retrying a step."""

from __future__ import annotations

from tables import roles
from tables.commands import Cancel, Pause, Resume, RetryStep, RunStep, Trigger
from tables.definition import Step
from tables.fold import refusals, step_life
from tables.fold.context import FoldContext
from tables.fold.transitions import advance, apply, by_trigger, end, failing_guard
from tables.instance import IN_FLIGHT, CeremonyStatus, Pauser, StepStatus
from tables.limits import MAX_ID_CHARACTERS, MAX_TEXT_CHARACTERS, clip
from tables.timers import millis

Operation = Cancel | Pause | Resume | RetryStep | RunStep | Trigger


# An operator lets a step run, or run again.
STEP_ORDERED = "ceremony.step.ordered"


def _who(command: Operation) -> dict[str, str]:
    return {
        "actor": clip(command.actor, MAX_ID_CHARACTERS),
        "role": clip(command.role, MAX_ID_CHARACTERS),
        "reason": clip(command.reason, MAX_TEXT_CHARACTERS),
    }


def _may(fold: FoldContext, command: Operation, action: str) -> bool:
    """Return whether an actor is named and its role allows `action`; else refuse."""
    if not command.actor.strip():
        fold.refuse(command, refusals.ACTOR_REQUIRED, "an operation needs an actor")
        return False
    refusal = roles.refusal(fold.definition, command.role, action)
    if refusal is not None:
        fold.refuse(command, *refusal)
    return refusal is None


def _refused_when(fold: FoldContext, command: Operation, *, paused: bool = False) -> bool:
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
    """Stop step and gate timers; until the resume answers are recorded and nothing starts."""
    if not command.by_engine and not _may(fold, command, roles.PAUSE):
        return
    if fold.row.paused:
        fold.note = "duplicate"
    elif not _refused_when(fold, command):
        who = _who(command)
        fold.row.pause(Pauser(**who))
        fold.lifecycle("paused", who)


def resume(fold: FoldContext, command: Resume) -> None:
    """Let timers continue, and act on the answers that came during the pause."""
    if not _may(fold, command, roles.RESUME) or _refused_when(fold, command):
        return
    if not fold.row.paused:
        fold.refuse(command, refusals.NOT_PAUSED, "the ceremony is not PAUSED")
        return
    fold.row.resume()
    fold.lifecycle("resumed", _who(command))
    fold.judge_due = True
    advance(fold)


def retry_step(fold: FoldContext, command: RetryStep) -> None:
    """Give a FAILED step a new budget of attempts. A FAILED ceremony opens again, with a new time limit.

    In a FAILED ceremony every step of the state that has run may be retried: after `no_transition` none has failed.
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
    """Open a FAILED ceremony again; steps that its end cancelled will run again too."""
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
    advance(fold)


def _step_here(fold: FoldContext, command: RetryStep | RunStep) -> Step | None:
    """Return the step, if the actor may use it and it belongs to the present state; else refuse."""
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
