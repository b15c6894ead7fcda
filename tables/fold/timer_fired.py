"""Timers that have fired: a late or a double one is harmless, an early one is told and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from tables.commands import Origin, TimerFired
from tables.definition import Step
from tables.fold import step_life
from tables.fold.context import Decision, FoldContext
from tables.fold.next_row import stub_of
from tables.fold.transitions import advance, end
from tables.instance import CeremonyStatus, Instance
from tables.kinds import Failed
from tables.timers import ASK, CEREMONY_MAX, GATE, RETRY, RUN_ON, TIMEOUT, UNTIL_TOMBSTONE


def not_now(row: Instance, command: TimerFired, now: int) -> str:
    """Why the timer changes nothing: `stale_timer`, `stale_attempt`, `early_timer`; "" when it is due."""
    timer = row.timers.get(command.timer_id)
    if timer is None:
        return "stale_timer"
    if timer.attempt != command.attempt:
        return "stale_attempt"
    stopped = row.status is CeremonyStatus.PAUSED and command.timer_id not in RUN_ON
    return "early_timer" if stopped or now < timer.due else ""


def expire(row: Instance, command: TimerFired, origin: Origin) -> Decision:
    """Retention: a finished row becomes a stub, and a year later a tombstone. Needs no definition."""
    now = max(row.updated_at, origin.timestamp)
    note = not_now(row, command, now)
    if note:
        return Decision(row, (), note)
    return Decision(None if row.expired else stub_of(row, now, UNTIL_TOMBSTONE), ())


def timer_fired(turn: FoldContext, command: TimerFired) -> None:
    turn.note = not_now(turn.row.base, command, turn.now)
    if turn.note:
        return
    if command.timer_id == CEREMONY_MAX:
        seconds = turn.definition.timeouts.ceremony_max
        end(turn, CeremonyStatus.TIMED_OUT, "ceremony_max", f"the ceremony did not end within {seconds:g} s")
        return
    prefix, _, step_id = command.timer_id.partition("/")
    _OF_STEP[prefix + "/"](turn, turn.definition.steps[step_id])
    advance(turn)


def _timeout(turn: FoldContext, step: Step) -> None:
    """The attempt's time is up: its kind says whether what was gathered suffices."""
    context = turn.context(step)
    verdict = turn.kind(step).timed_out(context, context.state.answers)
    if not step_life.conclude(turn, step, verdict):
        step_life.fail(turn, step, Failed("timeout", f"no answer within {step.timeout_seconds:g} s"))


def _gate(turn: FoldContext, step: Step) -> None:
    """A gate's deadline has passed: like a rejection it is not retried."""
    context = turn.context(step)
    verdict = turn.kind(step).timed_out(context, context.state.answers)
    message = verdict.message if isinstance(verdict, Failed) else "nobody decided before the gate's deadline"
    step_life.fail(turn, step, Failed("gate_deadline", message, retryable=False))


_OF_STEP: dict[str, Callable[[FoldContext, Step], None]] = {
    TIMEOUT: _timeout,
    RETRY: step_life.start,
    ASK: step_life.ask_again,
    GATE: _gate,
}
