"""The fold: one command and the row it meets give the next row and the effects. Pure and total.

It depends on the row, the command with its record's timestamp, and the pinned definition only: no clock, no chance, no
order of a set. Whoever folds the same commands gets the same bytes and the same effects with the same ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ports.errors import CeremonyError
from tables.commands import (
    AgentResult,
    AnyCommand,
    Cancel,
    GateDecision,
    Origin,
    Pause,
    Restore,
    Resume,
    RetryStep,
    RunStep,
    Start,
    StepOutcome,
    TimerFired,
    Trigger,
    decode_command,
    encode_command,
)
from tables.definition import Definition
from tables.fold import refusals
from tables.fold.agent_answers import agent_result, step_outcome
from tables.fold.context import Decision, FoldContext, refused
from tables.fold.gates import gate_decision
from tables.fold.next_row import NextRow
from tables.fold.operations import cancel, pause, resume, retry_step, run_step, trigger
from tables.fold.restore import restore
from tables.fold.start import start
from tables.fold.timer_fired import expire, timer_fired
from tables.fold.transitions import finish
from tables.instance import Instance
from tables.kinds import Kinds
from tables.timers import EXPIRE

__all__ = ["Decision", "decide"]


def decide(
    row: Instance | None, command: AnyCommand, origin: Origin, definition: Definition | None, kinds: Kinds
) -> Decision:
    """Fold one command.

    `definition` is the one pinned by the row, or by a Start where there is no row; None where this partition does not
    have it. Raises nothing for any command; InvariantBroken would mean a bug in here.
    """
    try:
        return _decide(row, command, origin, definition, kinds)
    except MemoryError:
        raise
    except Exception as error:
        if not _malformed(command):
            raise
        return _refuse(row, command, origin, refusals.MALFORMED_COMMAND, f"no field may be so: {type(error).__name__}")


def _decide(
    row: Instance | None, command: AnyCommand, origin: Origin, definition: Definition | None, kinds: Kinds
) -> Decision:
    if row is not None and type(command) is TimerFired and command.timer_id == EXPIRE:
        return expire(row, command, origin)
    if type(command) in _HANDLERS:
        return _on_row(row, command, origin, definition, kinds)
    if isinstance(command, Start):
        return start(row, command, origin, definition, kinds)
    if isinstance(command, Restore):
        return restore(row, command, origin, definition, kinds)
    return Decision(row, ())


def _on_row(
    row: Instance | None, command: AnyCommand, origin: Origin, definition: Definition | None, kinds: Kinds
) -> Decision:
    """Fold a command that speaks to a ceremony which is there, whole, and whose definition is known."""
    if row is None:
        return _refuse(row, command, origin, refusals.UNKNOWN_INSTANCE, "there is no such ceremony")
    if row.expired:
        return _refuse(row, command, origin, refusals.ALREADY_ENDED, f"the ceremony is {row.status}")
    if definition is None:
        return _refuse(row, command, origin, refusals.DEFINITION_UNKNOWN, "its definition is not in this partition")
    turn = FoldContext(NextRow(row, origin.timestamp), definition, kinds, origin)
    known_again = command.command_id if command.expects_answer else ""
    if known_again and turn.row.knows(known_again):
        return Decision(row, (), "duplicate")
    _HANDLERS[type(command)](turn, command)
    if known_again and turn.row.changed:
        turn.row.remember(known_again)
    return finish(turn)


_HANDLERS: dict[type, Callable[[FoldContext, Any], None]] = {
    StepOutcome: step_outcome,
    AgentResult: agent_result,
    TimerFired: timer_fired,
    GateDecision: gate_decision,
    Trigger: trigger,
    Cancel: cancel,
    Pause: pause,
    Resume: resume,
    RetryStep: retry_step,
    RunStep: run_step,
}


def _refuse(row: Instance | None, command: AnyCommand, origin: Origin, code: str, message: str) -> Decision:
    """Nothing changes; who waits for an answer gets one."""
    if not command.expects_answer:
        return Decision(row, (), code)
    return Decision(row, (refused(command.instance_id, command.command_id, origin, code, message),), code)


def _malformed(command: AnyCommand) -> bool:
    """Whether the command is none that the log could have held: a field has another shape than its type says."""
    try:
        return decode_command(encode_command(command)) != command
    except (CeremonyError, TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return True
