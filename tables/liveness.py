"""Liveness: what a ceremony that has not ended waits for. Nothing to wait for means stuck, which is a bug."""

from __future__ import annotations

from tables.definition import Definition
from tables.fold.transitions import open_guards
from tables.instance import TERMINAL, CeremonyStatus, Instance, Phase
from tables.timers import RUN_ON

_WORDS = {
    Phase.ASKED: "asked",
    Phase.SUBMITTED: "submitted, results are awaited",
    Phase.UNREACHABLE: "unreachable, asked again later",
    Phase.BACKOFF: "failed, the next attempt begins later",
    Phase.GATE: "a decision is awaited",
}


def waiting_for(row: Instance, definition: Definition) -> list[str]:
    """One line for each thing awaited: a pause, attempts in flight, open gates, timers of steps and gates, open guards.

    Empty for an ended ceremony; empty for a live one means that it is stuck.
    """
    if row.status in TERMINAL:
        return []
    reasons = ["paused"] if row.status is CeremonyStatus.PAUSED else []
    reasons += [
        f"step {step_id} (attempt {step.attempt}): {_WORDS[step.phase]}"
        for step_id, step in row.steps.items()
        if step.phase is not Phase.NONE
    ]
    reasons += [f"timer {timer_id}" for timer_id in row.timers if timer_id not in RUN_ON]
    reasons += [f"guard {name}" for name in open_guards(row, definition)]
    return reasons
