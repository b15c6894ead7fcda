"""What people ask of a ceremony as a whole: triggers, cancel, pause, resume, and running or retrying a step."""

from __future__ import annotations

from tables import roles
from tables.commands import Cancel, Pause, Resume, RetryStep, RunStep, Trigger
from tables.definition import Step
from tables.fold import refusals, step_life
from tables.fold.context import FoldContext
from tables.fold.next_row import IN_FLIGHT
from tables.fold.transitions import advance, apply, by_trigger, end, failing_guard
from tables.instance import CeremonyStatus, Pauser, StepStatus
from tables.limits import MAX_ID, MAX_TEXT, clip
from tables.timers import millis

Operation = Cancel | Pause | Resume | RetryStep | RunStep | Trigger


STEP_ORDERED = "ceremony.step.ordered"
"""An operator has a step run again, or run at all."""


def _who(command: Operation) -> dict[str, str]:
    return {
        "actor": clip(command.actor, MAX_ID),
        "role": clip(command.role, MAX_ID),
        "reason": clip(command.reason, MAX_TEXT),
    }


def _may(turn: FoldContext, command: Operation, action: str) -> bool:
    """Whether an actor is named and its role allows `action`: a step id, a trigger, or cancel, pause, resume."""
    if not command.actor.strip():
        turn.refuse(command.command_id, refusals.ACTOR_REQUIRED, "an operation needs an actor")
        return False
    refusal = roles.refusal(turn.definition, command.role, action)
    if refusal is not None:
        turn.refuse(command.command_id, *refusal)
    return refusal is None


def _refused_when(turn: FoldContext, command: Operation, *, paused: bool = False) -> bool:
    """Refuse what cannot be asked of an ended ceremony, or (`paused`) of one that is PAUSED."""
    if turn.row.ended:
        message = f"the ceremony is {turn.row.status}"
        turn.refuse(command.command_id, refusals.ALREADY_ENDED, message)
        return True
    if paused and turn.row.paused:
        turn.refuse(command.command_id, refusals.PAUSED, "the ceremony is PAUSED; resume it first")
        return True
    return False


def trigger(turn: FoldContext, command: Trigger) -> None:
    """Move by the transition of this name, where its guards hold and the actor's role allows it."""
    if not _may(turn, command, command.trigger) or _refused_when(turn, command, paused=True):
        return
    transition = by_trigger(turn, command.trigger)
    if transition is None:
        message = f"no transition leaving {turn.row.state} has the trigger {clip(command.trigger, 64)!r}"
        turn.refuse(command.command_id, refusals.TRIGGER_UNKNOWN, message)
        return
    failing = failing_guard(turn, transition)
    if failing is not None:
        turn.refuse(command.command_id, refusals.GUARDS_NOT_MET, f"guard `{failing[0]}`: {failing[1]}")
        return
    apply(turn, transition, _who(command))
    advance(turn)


def cancel(turn: FoldContext, command: Cancel) -> None:
    """End the ceremony as CANCELLED."""
    if not _may(turn, command, roles.CANCEL):
        return
    if turn.row.status is CeremonyStatus.CANCELLED:
        turn.note = "duplicate"
    elif not _refused_when(turn, command):
        end(turn, CeremonyStatus.CANCELLED, more=_who(command))


def pause(turn: FoldContext, command: Pause) -> None:
    """Stop step and gate timers; from now on answers are recorded, and nothing starts."""
    if not command.by_engine and not _may(turn, command, roles.PAUSE):
        return
    if turn.row.paused:
        turn.note = "duplicate"
    elif not _refused_when(turn, command):
        who = _who(command)
        turn.row.pause(Pauser(**who))
        turn.lifecycle("paused", who)


def resume(turn: FoldContext, command: Resume) -> None:
    """Timers go on with their rest, and what the answers of the pause call for happens now."""
    if not _may(turn, command, roles.RESUME) or _refused_when(turn, command):
        return
    if not turn.row.paused:
        turn.refuse(command.command_id, refusals.NOT_PAUSED, "the ceremony is not PAUSED")
        return
    turn.row.resume()
    turn.lifecycle("resumed", _who(command))
    advance(turn)


def retry_step(turn: FoldContext, command: RetryStep) -> None:
    """Give a FAILED step a new budget of attempts. A FAILED ceremony is open again, with new time for the whole.

    In a FAILED ceremony any step of the state that has run may be retried: after `no_transition` none has failed.
    """
    step = _step_here(turn, command)
    if step is None:
        return
    if turn.row.status is not CeremonyStatus.FAILED and _refused_when(turn, command, paused=True):
        return
    status = turn.row.steps[step.id].status
    if status in IN_FLIGHT:
        turn.refuse(command.command_id, refusals.STEP_IN_FLIGHT, f"step {step.id} is {status}")
    elif status is not StepStatus.FAILED and (status is StepStatus.PENDING or not turn.row.ended):
        turn.refuse(command.command_id, refusals.STEP_NOT_FAILED, f"step {step.id} is {status}, not FAILED")
    else:
        if turn.row.ended:
            _reopen(turn, command, step)
        _order(turn, command, step, "retry")


def _reopen(turn: FoldContext, command: RetryStep, step: Step) -> None:
    """Open a FAILED ceremony again: steps that its end cancelled will run again too."""
    turn.row.reopen(millis(turn.definition.timeouts.ceremony_max))
    for other in turn.here:
        if turn.row.steps[other.id].status is StepStatus.CANCELLED:
            step_life.reset(turn, other)
    turn.lifecycle("resumed", _who(command) | {"step_id": step.id})


def run_step(turn: FoldContext, command: RunStep) -> None:
    """Run a step that the start did not select."""
    step = _step_here(turn, command)
    if step is None or _refused_when(turn, command, paused=True):
        return
    status = turn.row.steps[step.id].status
    if turn.selects(step.id):
        turn.refuse(command.command_id, refusals.STEP_SELECTED, f"step {step.id} runs by itself")
    elif status is not StepStatus.PENDING:
        turn.refuse(command.command_id, refusals.STEP_NOT_PENDING, f"step {step.id} is {status}")
    else:
        _order(turn, command, step, "run")


def _order(turn: FoldContext, command: RetryStep | RunStep, step: Step, operation: str) -> None:
    """Say who wants the step to run, and let it run."""
    turn.event(
        STEP_ORDERED,
        {
            "instance_id": turn.row.base.instance_id,
            "step_id": step.id,
            "current_state": turn.row.state,
            "operation": operation,
            "attempt": turn.row.steps[step.id].attempt + 1,
            **_who(command),
        },
    )
    step_life.start(turn, step, new_budget=True)
    advance(turn)


def _step_here(turn: FoldContext, command: RetryStep | RunStep) -> Step | None:
    """The step, when the actor may use it and it belongs to the present state; else the command is refused."""
    step = turn.definition.steps.get(command.step_id)
    if not _may(turn, command, command.step_id):
        return None
    if step is None:
        message = f"{turn.definition.name} has no step {clip(command.step_id, 64)!r}"
        turn.refuse(command.command_id, refusals.STEP_UNKNOWN, message)
    elif step.state != turn.row.state:
        message = f"step {step.id} belongs to {step.state}, the ceremony is in {turn.row.state}"
        turn.refuse(command.command_id, refusals.WRONG_STATE, message)
    else:
        return step
    return None
