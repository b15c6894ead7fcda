"""Timers that fired. A late or repeated one is harmless; an early one is noted and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from tables.commands import TimerFired
from tables.definition import Step
from tables.fold import step_life
from tables.fold.context import FoldContext
from tables.fold.retention import expire
from tables.fold.transitions import advance, end
from tables.instance import CeremonyStatus, Instance
from tables.kinds import Failed
from tables.timers import ASK, CEREMONY_MAX, EXPIRE, GATE, RETRY, RUN_ON, TIMEOUT


def timer_fired(fold: FoldContext, command: TimerFired) -> None:
    row = fold.before
    fold.note = "stale_timer" if row is None else _not_now(row, command, fold.now)
    if row is None or fold.note:
        return
    if command.timer_id == EXPIRE:
        expire(fold, row)
    elif command.timer_id == CEREMONY_MAX:
        _ceremony_max(fold)
    else:
        prefix, _, step_id = command.timer_id.partition("/")
        _OF_STEP[prefix + "/"](fold, fold.definition.steps[step_id])
        advance(fold)


def _not_now(row: Instance, command: TimerFired, now: int) -> str:
    """Return why the timer changes nothing: `stale_timer`, `stale_attempt`, `early_timer`; "" when it is due."""
    timer = row.timers.get(command.timer_id)
    if timer is None:
        return "stale_timer"
    if timer.attempt != command.attempt:
        return "stale_attempt"
    stopped = row.status is CeremonyStatus.PAUSED and command.timer_id not in RUN_ON
    return "early_timer" if stopped or now < timer.due else ""


def _ceremony_max(fold: FoldContext) -> None:
    """End the ceremony as TIMED_OUT."""
    seconds = fold.definition.timeouts.ceremony_max
    end(fold, CeremonyStatus.TIMED_OUT, "ceremony_max", f"the ceremony did not end within {seconds:g} s")


def _timeout(fold: FoldContext, step: Step) -> None:
    """End an attempt whose time is up; its kind judges the answers so far."""
    context = fold.context(step)
    verdict = fold.kind(step).timed_out(context, context.state.answers)
    if not step_life.conclude(fold, step, verdict):
        step_life.fail(fold, step, Failed("timeout", f"no answer within {step.timeout_seconds:g} s"))


def _gate_deadline(fold: FoldContext, step: Step) -> None:
    """Fail a gate whose deadline has passed; like a rejection it is not retried."""
    context = fold.context(step)
    verdict = fold.kind(step).timed_out(context, context.state.answers)
    message = verdict.message if isinstance(verdict, Failed) else "nobody decided before the gate's deadline"
    step_life.fail(fold, step, Failed("gate_deadline", message, retryable=False))


_OF_STEP: dict[str, Callable[[FoldContext, Step], None]] = {
    TIMEOUT: _timeout,
    RETRY: step_life.start,
    ASK: step_life.ask_again,
    GATE: _gate_deadline,
}
