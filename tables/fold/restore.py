"""Bringing an instance back from a read model: checked first, never over a newer row, never resting on old attempts."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from tables.commands import Origin, Restore
from tables.definition import Definition
from tables.fold import refusals, step_life
from tables.fold.context import Decision, FoldContext, refused
from tables.fold.next_row import NextRow
from tables.fold.transitions import advance, finish
from tables.instance import ROW_FORMAT, Instance, Phase
from tables.invariants import broken
from tables.kinds import Kinds
from tables.limits import MAX_OUTPUT_DEPTH, deeper_than
from tables.timers import ASK

_ROW_DEPTH = MAX_OUTPUT_DEPTH + 8


def instance_of(body: Any) -> Instance | None:
    """The row a Restore carries, or None when it is none."""
    if deeper_than(body, _ROW_DEPTH):
        return None
    try:
        row = msgspec.convert(body, Instance)
    except (msgspec.ValidationError, RecursionError):
        return None
    return row if row.format <= ROW_FORMAT else None


def problems(row: Instance, definition: Definition) -> list[str]:
    """Every broken invariant of a row that is to be restored."""
    return broken(row, definition)


def restore(
    row: Instance | None, command: Restore, origin: Origin, definition: Definition | None, kinds: Kinds
) -> Decision:
    """Take the restored row as the newest; attempts in flight are asked again under their raised numbers."""
    found = instance_of(command.instance)
    if found is None or found.instance_id != command.instance_id:
        return _refuse(row, command, origin, "the body is no row of this instance")
    if row is not None and row.version >= found.version:
        return Decision(row, (), "duplicate")
    if found.expired:
        reasons = broken(found)
    elif definition is None or definition.hash != found.definition_hash:
        return _refuse(row, command, origin, "its definition is not in this partition", refusals.DEFINITION_UNKNOWN)
    else:
        reasons = problems(found, definition)
    if reasons:
        return _refuse(row, command, origin, "; ".join(reasons[:20]))
    if found.expired or definition is None:
        return Decision(found, ())
    turn = FoldContext(NextRow(found, origin.timestamp), definition, kinds, origin)
    turn.row.touch()
    if not turn.row.ended:
        _ask_again(turn)
        advance(turn)
    return finish(turn)


def _refuse(
    row: Instance | None, command: Restore, origin: Origin, message: str, code: str = refusals.RESTORE_INVALID
) -> Decision:
    return Decision(row, (refused(command.instance_id, command.command_id, origin, code, message),), code)


def _ask_again(turn: FoldContext) -> None:
    """What was gathered belongs to old attempts; while PAUSED the asking waits for the resume."""
    for step in turn.here:
        state = turn.row.steps[step.id]
        if state.phase not in (Phase.ASKED, Phase.SUBMITTED, Phase.UNREACHABLE):
            continue
        fresh = replace(state, answers={}, gathered=0, deliberation_id="", asks=0)
        turn.row.set_step(step.id, fresh)
        if turn.row.paused:
            turn.row.set_step(step.id, replace(fresh, phase=Phase.UNREACHABLE))
            turn.row.set_timer(ASK + step.id, 0, state.attempt)
        else:
            step_life.ask_again(turn, step)
