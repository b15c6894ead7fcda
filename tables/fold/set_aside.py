"""Rows of ceremonies whose commands cannot be folded or written: PAUSED, made without the fold that failed."""

from __future__ import annotations

from msgspec.structs import replace

from tables.fold.next_row import NextRow, raised
from tables.fold.retention import UNTIL_TOMBSTONE_MS, stub_of
from tables.instance import TERMINAL, CeremonyStatus, Instance, Pauser, Timer
from tables.timers import RUN_ON

# A timer that fires in spite of the pause, and fails, fires again after this time.
AGAIN_MS = 3_600_000
# Error code of a ceremony that began, and ended because its row could not be written.
UNWRITABLE = "row_unwritable"
# As a Restore raises them.
VERSIONS, ATTEMPTS = 1000, 100


def set_aside(row: Instance, now: int, by: Pauser) -> Instance:
    """Return the row PAUSED, without any check that could fail; an ended or PAUSED row as it is."""
    next_row = NextRow(row, now)
    if not next_row.moves:
        return row
    next_row.pause(by)
    return next_row.peek()


def substituted(written: Instance | None, newest: Instance, by: Pauser) -> Instance:
    """Return a row for one that cannot be written: its last written form, PAUSED, else the stub of a FAILED ceremony.

    Versions and attempts are raised, so that nothing new is taken for what the lost versions ordered.
    """
    if written is None:
        stub = stub_of(newest, newest.updated_at, UNTIL_TOMBSTONE_MS)
        if newest.status in TERMINAL:
            return stub
        ended_at = max(newest.updated_at, 1)
        return replace(
            stub, status=CeremonyStatus.FAILED, ended_at=ended_at, error_code=UNWRITABLE, error_message=by.reason
        )
    row = raised(written, newest.version - written.version + VERSIONS, ATTEMPTS)
    row = replace(row, updated_at=max(row.updated_at, newest.updated_at))
    return set_aside(row, row.updated_at, by)


def postponed(row: Instance, timer_id: str, now: int) -> Instance:
    """Return the row with a timer that failed set later, where a pause does not stop it and it would fire at once."""
    timer = row.timers.get(timer_id)
    if timer is None or timer_id not in RUN_ON or timer.due > now:
        return row
    timers = {**row.timers, timer_id: Timer(now + AGAIN_MS, timer.attempt)}
    return replace(row, version=row.version + 1, timers=timers)
