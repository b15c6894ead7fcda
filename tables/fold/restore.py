"""Restores an instance from a read model, never over a newer row; attempts in flight begin anew."""

from __future__ import annotations

from typing import Any

import msgspec

from tables.commands import Restore
from tables.definition import Definition
from tables.fold import refusals, step_life
from tables.fold.context import Decision, FoldContext
from tables.fold.next_row import NextRow
from tables.fold.transitions import advance
from tables.instance import ROW_FORMAT, Instance, Phase, recounted
from tables.invariants import broken
from tables.limits import MAX_OUTPUT_DEPTH, MAX_WRITTEN_BYTES, deeper_than
from tables.timers import ASK, TIMEOUT, millis

_ROW_DEPTH = MAX_OUTPUT_DEPTH + 8


def restore(fold: FoldContext, command: Restore) -> None:
    """Take the restored row as the newest, and request its attempts in flight under raised numbers."""
    found = _instance_of(command.instance)
    if found is None or found.instance_id != command.instance_id:
        fold.refuse(command, refusals.RESTORE_INVALID, "the body is not a row of this instance")
        return
    if fold.before is not None and fold.before.version >= found.version:
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


def _take(fold: FoldContext, found: Instance) -> None:
    fold.begin(NextRow(found, fold.origin.timestamp))
    fold.row.touch()
    if not fold.row.ended:
        _ask_again(fold)
        advance(fold)


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
