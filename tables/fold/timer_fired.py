"""Timers that fired. A late or repeated one is harmless; an early one is noted and changes nothing.

An early one of a row whose time is ahead of the log's shortens the timers that a clock ahead has set too late.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from tables import timers
from tables.commands import TimerFired
from tables.definition import Step
from tables.fold import step_life
from tables.fold.context import FoldContext
from tables.fold.retention import UNTIL_STUB_MS, expire
from tables.fold.transitions import advance, end
from tables.instance import CeremonyStatus, Instance
from tables.kinds import Failed
from tables.retries import ask_pause, retry_pause
from tables.timers import ASK, CEREMONY_MAX, CLOCK_AHEAD_MS, EXPIRE, GATE, RETRY, RUN_ON, TIMEOUT, millis


def timer_fired(fold: FoldContext, command: TimerFired) -> None:
    row = fold.before
    fold.note = "stale_timer" if row is None else _not_now(row, command, fold.origin.timestamp)
    if row is None:
        return
    if fold.note:
        if fold.note == "early_timer" and fold.begun and _shorten(fold, row):
            fold.note = ""
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


def _shorten(fold: FoldContext, row: Instance) -> bool:
    """Shorten timers that a clock ahead has set too late: none has more than its whole duration to go."""
    now = fold.origin.timestamp
    if row.expired or row.updated_at - now <= CLOCK_AHEAD_MS:
        return False
    shortened = False
    for timer_id, timer in row.timers.items():
        if row.status is CeremonyStatus.PAUSED and timer_id not in RUN_ON:
            continue
        longest = _longest(fold, row, timer_id)
        if timer.due > now + longest:
            fold.row.set_timer(timer_id, longest, timer.attempt)
            shortened = True
    return shortened


def _longest(fold: FoldContext, row: Instance, timer_id: str) -> int:
    """Return the milliseconds for which the timer was set."""
    if timer_id == EXPIRE:
        return UNTIL_STUB_MS
    if timer_id == CEREMONY_MAX:
        return millis(fold.definition.timeouts.ceremony_max)
    prefix, _, step_id = timer_id.partition("/")
    step, state = fold.definition.steps[step_id], row.steps[step_id]
    match prefix + "/":
        case timers.RETRY:
            return retry_pause(step.retry, state.tries, row.instance_id, step_id, state.attempt)
        case timers.ASK:
            return ask_pause(state.asks)
        case timers.GATE if step.gate is not None and step.gate.deadline_seconds is not None:
            return millis(step.gate.deadline_seconds)
        case _:
            return millis(step.timeout_seconds)


def _ceremony_max(fold: FoldContext) -> None:
    """End the ceremony as TIMED_OUT."""
    seconds = fold.definition.timeouts.ceremony_max
    end(fold, CeremonyStatus.TIMED_OUT, "ceremony_max", f"the ceremony did not end within {seconds:g} s")


def _timeout(fold: FoldContext, step: Step) -> None:
    """End an attempt whose time is up; its kind judges the answers so far."""
    context = fold.context(step)
    verdict = fold.kind(step).timed_out(context, context.state.answers)
    if isinstance(verdict, Failed) and context.state.error_code:  # its neighbour was out of reach
        last = f"{verdict.message}; last: {context.state.error_code}: {context.state.error_message}"
        verdict = replace(verdict, message=last)
    if not step_life.conclude(fold, step, verdict):
        step_life.fail(fold, step, Failed("timeout", f"no answer came within {step.timeout_seconds:g} s"))


def _gate_deadline(fold: FoldContext, step: Step) -> None:
    """Fail a gate whose deadline has passed; like a rejection it is not retried."""
    context = fold.context(step)
    verdict = fold.kind(step).timed_out(context, context.state.answers)
    message = verdict.message if isinstance(verdict, Failed) else "the gate's deadline passed without a decision"
    step_life.fail(fold, step, Failed("gate_deadline", message, retryable=False))


_OF_STEP: dict[str, Callable[[FoldContext, Step], None]] = {
    TIMEOUT: _timeout,
    RETRY: step_life.start,
    ASK: step_life.ask_again,
    GATE: _gate_deadline,
}
