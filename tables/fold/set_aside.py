"""Rows of ceremonies whose commands cannot be folded or written: PAUSED, made without the fold that failed.

The owner of a partition puts a substitute in the place of a row that no checkpoint can write, and reports it by a
command. So the log holds the decision: a later fold of it comes to the same status, and to the same event.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from tables.commands import SET_ASIDE_ID, SetAside
from tables.effects import FOLD, Effect, Ended, Event
from tables.fold.context import Decision, FoldContext
from tables.fold.next_row import NextRow, raised
from tables.fold.retention import UNTIL_TOMBSTONE_MS, stub_of
from tables.instance import KEPT_COMMAND_IDS, TERMINAL, CeremonyStatus, Instance, Pauser, Timer
from tables.timers import RUN_ON

# A timer that fires in spite of the pause, and fails, fires again after this time.
AGAIN_MS = 3_600_000
# Error code of a ceremony that began, and ended because its row could not be written.
UNWRITABLE = "row_unwritable"
BY = Pauser("ceremony-engine", reason="its row cannot be written")
# As a Restore raises them.
VERSIONS, ATTEMPTS = 1000, 100


def set_aside(row: Instance, now: int, by: Pauser) -> Instance:
    """Return the row PAUSED, without any check that could fail; an ended or PAUSED row as it is."""
    next_row = NextRow(row, now)
    if not next_row.moves():
        return row
    next_row.pause(by)
    return next_row.peek()


def substituted(written: Instance | None, newest: Instance) -> Instance:
    """Return a row for one that cannot be written: its last written form, PAUSED, else the stub of a FAILED ceremony.

    An end that was announced stands: then it is the stub of the ended ceremony. Versions and attempts are raised, so
    that nothing new is taken for what the lost versions ordered.
    """
    if newest.status in TERMINAL:
        return stub_of(newest, newest.updated_at, UNTIL_TOMBSTONE_MS)
    if written is None or written.status in TERMINAL:  # of one that was opened again only the end was written
        return _failed_stub(newest)
    row = raised(written, newest.version - written.version + VERSIONS, ATTEMPTS)
    row = replace(row, updated_at=max(row.updated_at, newest.updated_at))
    known = reported_as(written)
    row = set_aside(row, row.updated_at, BY)
    row = replace(row, paused_by=newest.paused_by if newest.status is CeremonyStatus.PAUSED else BY)
    return _remembering(row, known) if known in newest.command_ids else row


def _failed_stub(row: Instance) -> Instance:
    stub = stub_of(row, row.updated_at, UNTIL_TOMBSTONE_MS)
    ended_at = max(row.updated_at, 1)
    return replace(
        stub,
        version=row.version + VERSIONS,
        status=CeremonyStatus.FAILED,
        ended_at=ended_at,
        error_code=UNWRITABLE,
        error_message=BY.reason,
    )


def reported_as(written: Instance | None) -> str:
    """Return the command id under which a row that cannot be written is reported, however often it is."""
    return f"{SET_ASIDE_ID}{0 if written is None else written.version}"


def report(written: Instance | None, substitute: Instance, code: str, message: str) -> SetAside:
    """Return the command that announces a substitute."""
    return SetAside(
        instance_id=substitute.instance_id,
        command_id=reported_as(written),
        status=substitute.status.value,
        state=substitute.state,
        version=substitute.version + 1,
        code=code,
        message=message,
    )


def announce(fold: FoldContext, command: SetAside) -> None:
    """Fold a report: announce the failure or the pause, once.

    After a crash the row is the one that cannot be written, folded from the log again: then it is set aside here.
    """
    row = fold.before
    if row is None:
        return
    if command.command_id in row.command_ids:
        fold.note = "duplicate"
    elif command.status == CeremonyStatus.FAILED and (_is_failed_stub(row) or row.status not in TERMINAL):
        _announce_failure(fold, command, row if _is_failed_stub(row) else _failed_stub(row))
    elif command.status == CeremonyStatus.PAUSED and row.status not in TERMINAL:
        _announce_pause(fold, command, set_aside(row, fold.now, BY))
    else:
        fold.note = "already_ended"


def _is_failed_stub(row: Instance) -> bool:
    return row.expired and row.error_code == UNWRITABLE


def _announce_failure(fold: FoldContext, command: SetAside, row: Instance) -> None:
    event = _event(fold, command, row, "failed", {"error_code": UNWRITABLE, "error_message": row.error_message})
    ended = Ended(id=_effect_id(command, 1), instance_id=row.instance_id, status=row.status.value)
    fold.decided = Decision(_announced(row, command), (event, ended))


def _announce_pause(fold: FoldContext, command: SetAside, row: Instance) -> None:
    effects: tuple[Effect, ...] = ()
    if row.paused_by == BY:  # else it was PAUSED before, and that was announced
        who = {"actor": BY.actor, "role": BY.role, "reason": BY.reason}
        effects = (_event(fold, command, row, "paused", who),)
    fold.decided = Decision(_announced(row, command), effects)


def _event(fold: FoldContext, command: SetAside, row: Instance, word: str, more: dict[str, Any]) -> Event:
    """Return an event whose id and content come from the report, as a fold after a crash may meet another row."""
    return Event(
        id=_effect_id(command, 0),
        subject=f"ceremony.{word}",
        instance_id=row.instance_id,
        correlation_id=row.correlation_id,
        at=fold.origin.timestamp,
        payload={
            "instance_id": row.instance_id,
            "definition_name": row.definition_name,
            "current_state": command.state,
            "status": command.status,
        }
        | more,
    )


def _effect_id(command: SetAside, ordinal: int) -> str:
    return f"{command.instance_id}/{command.version}/{ordinal}@{FOLD}"


def _announced(row: Instance, command: SetAside) -> Instance:
    return _remembering(replace(row, version=max(row.version + 1, command.version)), command.command_id)


def _remembering(row: Instance, command_id: str) -> Instance:
    return replace(row, command_ids=(*row.command_ids, command_id)[-KEPT_COMMAND_IDS:])


def postponed(row: Instance, timer_id: str, now: int) -> Instance:
    """Return the row with a timer that failed set later, where a pause does not stop it and it would fire at once."""
    timer = row.timers.get(timer_id)
    if timer is None or timer_id not in RUN_ON or timer.due > now:
        return row
    timers = {**row.timers, timer_id: Timer(now + AGAIN_MS, timer.attempt)}
    return replace(row, version=row.version + 1, timers=timers)
