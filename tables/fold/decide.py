"""The fold: one command and the row it meets give the next row and the effects. Pure and total.

It depends only on the row, the command with its record's timestamp, and the pinned definition: on no clock, no chance
and no order of a set. Every worker that folds the same commands gets the same bytes, and effects with the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ports.errors import CeremonyError
from tables.commands import (
    AgentResult,
    AnyCommand,
    Cancel,
    Command,
    GateDecision,
    Noop,
    Origin,
    Pause,
    PutDefinition,
    Restore,
    Resume,
    RetryStep,
    RunStep,
    SetAside,
    Start,
    StepOutcome,
    TimerFired,
    Trigger,
    UnreadableRow,
    content_digest,
    decode_command,
    encode_command,
)
from tables.definition import Definition
from tables.fold import gates, operations, refusals
from tables.fold.agent_answers import agent_result, step_outcome
from tables.fold.context import Decision, FoldContext, refused
from tables.fold.gates import gate_decision
from tables.fold.operations import cancel, pause, resume, retry_step, run_step, trigger
from tables.fold.restore import restore
from tables.fold.set_aside import announce
from tables.fold.start import start
from tables.fold.timer_fired import timer_fired
from tables.fold.transitions import finish
from tables.instance import Instance
from tables.kinds import Kinds
from tables.timers import EXPIRE

__all__ = ["Decision", "decide"]


def nothing(fold: FoldContext, command: Command) -> None:
    """Change no row: the ceremony agent itself stores definitions, and a Noop only carries a timestamp."""


HANDLERS: Mapping[type[Command], Callable[[FoldContext, Any], None]] = {
    # A ceremony begins.
    Start: start,
    # Agents answer.
    StepOutcome: step_outcome,
    AgentResult: agent_result,
    # People decide and operate.
    GateDecision: gate_decision,
    Trigger: trigger,
    Cancel: cancel,
    Pause: pause,
    Resume: resume,
    RetryStep: retry_step,
    RunStep: run_step,
    # Time passes: deadlines, retries, retention.
    TimerFired: timer_fired,
    # A ceremony comes back from a read model.
    Restore: restore,
    # A row could not be written.
    SetAside: announce,
    # No ceremony is concerned.
    PutDefinition: nothing,
    UnreadableRow: nothing,
    Noop: nothing,
}


def decide(
    row: Instance | None, command: AnyCommand, origin: Origin, definition: Definition | None, kinds: Kinds
) -> Decision:
    """Fold one command.

    `definition` is the one pinned by the row, or by a Start where there is no row; None where this partition does not
    have it. No command makes it raise; InvariantBroken means a bug of the fold.
    """
    try:
        return _decide(row, command, origin, definition, kinds)
    except MemoryError:
        raise
    except Exception as error:
        if not _malformed(command):
            raise
        return _refuse(
            row,
            command,
            origin,
            refusals.MALFORMED_COMMAND,
            f"a field of the command has a value of the wrong type ({type(error).__name__})",
        )


def _decide(
    row: Instance | None, command: AnyCommand, origin: Origin, definition: Definition | None, kinds: Kinds
) -> Decision:
    missing = _missing(row, command, definition)
    if missing is not None:
        return _refuse(row, command, origin, *missing)
    fold = FoldContext(row, definition, kinds, origin)
    idempotency_key = command.command_id if command.expects_answer else ""
    if idempotency_key and fold.row.knows(idempotency_key):
        _repeated(fold, command)
        return finish(fold)
    HANDLERS[type(command)](fold, command)
    if idempotency_key and fold.row.changed:
        fold.row.remember(idempotency_key, content_digest(command))
    return finish(fold)


def _repeated(fold: FoldContext, command: AnyCommand) -> None:
    """Accept an operation with a known id where it is the same again; an id stands for one operation only."""
    known = fold.row.digest_of(command.command_id)
    problem = _forbidden(fold, command)
    if problem is None and known and known != content_digest(command):
        problem = refusals.REQUEST_ID_REUSED, "this request_id was used for another operation on this ceremony"
    if problem is None:
        fold.note = "duplicate"
    else:
        fold.refuse(command, *problem)


def _forbidden(fold: FoldContext, command: AnyCommand) -> tuple[str, str] | None:
    """Return why the actor of an operation may not use it: (code, message), or None."""
    if isinstance(command, GateDecision):
        return gates.forbidden(fold, command)
    return operations.forbidden(fold, command) if isinstance(command, operations.OperatorCommand) else None


# -- refusals

# Commands that are folded with or without a ceremony.
_WITHOUT_CEREMONY = frozenset({Start, Restore, PutDefinition, UnreadableRow, Noop})


def _missing(row: Instance | None, command: AnyCommand, definition: Definition | None) -> tuple[str, str] | None:
    """Return why the command cannot be folded: the ceremony, its body or its definition is missing."""
    if type(command) in _WITHOUT_CEREMONY:
        return None
    if row is None:
        return refusals.UNKNOWN_INSTANCE, "there is no such ceremony"
    if type(command) is SetAside or (type(command) is TimerFired and command.timer_id == EXPIRE):
        return None  # both meet stubs too, and need no definition
    if row.expired:
        return refusals.ALREADY_ENDED, f"the ceremony is {row.status}"
    if definition is None:
        return refusals.DEFINITION_UNKNOWN, "the definition of the ceremony cannot be read in this partition"
    return None


def _refuse(row: Instance | None, command: AnyCommand, origin: Origin, code: str, message: str) -> Decision:
    """Leave the row as it is, and answer the client where one waits."""
    answer = refused(command.instance_id, command, origin, code, message)
    return Decision(row, (answer,) if command.expects_answer else (), code)


# -- the safety net


def _malformed(command: AnyCommand) -> bool:
    """Return whether the log cannot hold this command, because a field has another type than declared."""
    try:
        return decode_command(encode_command(command)) != command
    except (CeremonyError, TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return True
