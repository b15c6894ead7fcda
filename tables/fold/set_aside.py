"""Rows of ceremonies whose commands cannot be folded or written: PAUSED, made without the fold that failed."""

from __future__ import annotations

from msgspec.structs import replace

from tables.fold.next_row import NextRow
from tables.instance import Instance, Pauser, Timer
from tables.timers import RUN_ON

# A timer that fires in spite of the pause, and fails, fires again after this time.
AGAIN_MS = 3_600_000


def set_aside(row: Instance, now: int, by: Pauser) -> Instance:
    """Return the row PAUSED, without any check that could fail; an ended or PAUSED row as it is."""
    next_row = NextRow(row, now)
    if not next_row.moves:
        return row
    next_row.pause(by)
    return next_row.peek()


def postponed(row: Instance, timer_id: str, now: int) -> Instance:
    """Return the row with a timer that failed set later, where a pause does not stop it and it would fire at once."""
    timer = row.timers.get(timer_id)
    if timer is None or timer_id not in RUN_ON or timer.due > now:
        return row
    timers = {**row.timers, timer_id: Timer(now + AGAIN_MS, timer.attempt)}
    return replace(row, version=row.version + 1, timers=timers)
