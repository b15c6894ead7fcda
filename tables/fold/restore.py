"""Restores an instance from a read model, never over a newer row; attempts in flight begin anew."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from tables.commands import Restore
from tables.definition import Definition
from tables.fold import refusals, step_life
from tables.fold.context import Decision, FoldContext
from tables.fold.next_row import NextRow, raised
from tables.fold.set_aside import ATTEMPTS, VERSIONS, set_aside
from tables.fold.transitions import advance
from tables.instance import ROW_FORMAT, TERMINAL, CeremonyStatus, Instance, Pauser, Phase, Timer, recounted
from tables.invariants import broken
from tables.limits import MAX_OUTPUT_DEPTH, MAX_WRITTEN_BYTES, clip, deeper_than
from tables.timers import ASK, RUN_ON, TIMEOUT, millis

# The actor who pauses a restored ceremony that is lossy.
RESTORER = "ceremony-rehydrate"
LOSSY = "restored from a store that holds redacted texts"
# Every number up to here is exact in JSON.
_LATEST_MS = 2**53
_ROW_DEPTH = MAX_OUTPUT_DEPTH + 8


def restore(fold: FoldContext, command: Restore) -> None:
    """Take the restored row as the newest, and request its attempts in flight under raised numbers."""
    found = _instance_of(command.instance)
    if found is None or found.instance_id != command.instance_id:
        fold.refuse(command, refusals.RESTORE_INVALID, "the body is not a row of this instance")
        return
    if fold.before is not None and is_newer(fold.before.created_at, fold.before.version, found, command.seen_version):
        fold.note = "duplicate"
        return
    problem = _problem(found, fold.pinned)
    if problem is not None:
        fold.refuse(command, *problem)
    elif found.expired:
        fold.decided = Decision(found, ())
    elif (counted := recounted(found)).size > MAX_WRITTEN_BYTES:
        message = f"the row holds {counted.size} bytes, at most {MAX_WRITTEN_BYTES} are kept"
        fold.refuse(command, refusals.RESTORE_INVALID, message)
    else:
        _take(fold, counted)


def _instance_of(body: Any) -> Instance | None:
    """Return the row that a Restore carries, or None where its body is none."""
    if deeper_than(body, _ROW_DEPTH):
        return None
    try:
        row = msgspec.convert(body, Instance)
    except (msgspec.ValidationError, RecursionError):
        return None
    return row if row.format <= ROW_FORMAT else None


def _problem(found: Instance, definition: Definition | None) -> tuple[str, str] | None:
    """Return why the row cannot be taken: its definition is missing, or invariants are broken."""
    if found.expired:
        reasons = broken(found)
    elif definition is None or definition.hash != found.definition_hash:
        return refusals.DEFINITION_UNKNOWN, "the definition of the ceremony cannot be read in this partition"
    else:
        reasons = broken(found, definition)
    return (refusals.RESTORE_INVALID, "; ".join(reasons[:20])) if reasons else None


def is_newer(created_at: int, version: int, found: Instance, seen_version: int) -> bool:
    """Return whether a row of the table stays: it began later under this id, or is at least as new as the stored ones.

    `seen_version`: the highest version seen in the stores. A command of an older release names none (0): it replaces
    every row with a lower version than its own.
    """
    if not seen_version:
        return version >= found.version
    return created_at > found.created_at or (created_at == found.created_at and version >= seen_version)


def to_restore(row: Instance, seen_version: int, lost: str = "") -> Instance:
    """Return a rehydrated row as a Restore carries it: its version and attempts are above all that were ever seen.

    `lost`: words on the texts that later steps would miss; a row that has not ended is then PAUSED.
    """
    if lost:
        row = set_aside(row, row.updated_at, Pauser(RESTORER, reason=clip(f"{LOSSY}: {lost}")))
    return raised(row, max(seen_version, row.version) - row.version + VERSIONS, ATTEMPTS)


def _take(fold: FoldContext, found: Instance) -> None:
    found = _shifted(found, fold.origin.timestamp)
    fold.begin(NextRow(found, fold.origin.timestamp))
    fold.row.touch()
    if not fold.row.ended:
        _ask_again(fold)
        advance(fold)


def _shifted(found: Instance, now: int) -> Instance:
    """Return the row with the rest that each timer had at its last change: the disaster does not count.

    Otherwise an old ceremony would time out, and its gates would fail, the moment it is back.
    """
    gone = now - found.updated_at
    if gone <= 0 or found.status in TERMINAL:
        return found
    stopped = found.status is CeremonyStatus.PAUSED
    timers = {
        timer_id: timer
        if stopped and timer_id not in RUN_ON
        else Timer(min(timer.due + gone, _LATEST_MS), timer.attempt)
        for timer_id, timer in found.timers.items()
    }
    return replace(found, timers=timers)


def _ask_again(fold: FoldContext) -> None:
    """Drop answers to old attempts, and request again with a new deadline.

    While PAUSED the request waits for the resume.
    """
    for step in fold.here:
        state = fold.row.steps[step.id]
        if state.phase not in (Phase.ASKED, Phase.SUBMITTED, Phase.UNREACHABLE):
            continue
        fold.row.set_step(step.id, state.restored(fold.now))
        fold.row.set_timer(TIMEOUT + step.id, millis(step.timeout_seconds), state.attempt)
        if fold.row.paused:
            fold.row.set_step(step.id, state.restored(fold.now).unreachable())
            fold.row.set_timer(ASK + step.id, 0, state.attempt)
        else:
            step_life.ask_again(fold, step)
