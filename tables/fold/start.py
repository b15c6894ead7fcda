"""Start: the first one wins, the same start again changes nothing, any other is refused with an event."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from tables.commands import Origin, Start
from tables.definition import ALWAYS_INPUTS, Definition
from tables.effects import Event
from tables.fold import refusals
from tables.fold.context import FoldContext
from tables.fold.next_row import NextRow
from tables.fold.transitions import advance, end
from tables.instance import CeremonyStatus, Instance
from tables.limits import MAX_ID_CHARACTERS, MAX_INPUT_DEPTH, MAX_INPUTS_BYTES, clip, deeper_than
from tables.timers import CEREMONY_MAX, millis

START_REFUSED = "ceremony.start.refused"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Two ids and the colon; a longer id is invalid, and is cut where it is refused.
_LONGEST_INSTANCE_ID = 257
# A W3C traceparent, as the front writes it.
_TRACEPARENT_CHARACTERS = 55
# Differing fields named in a refusal, and characters of each.
_MOST_NAMES, _LONGEST_NAME = 10, 64
_sorted = msgspec.json.Encoder(order="sorted").encode


def start(fold: FoldContext, command: Start) -> None:
    """Begin a ceremony of the definition that the command names."""
    if fold.before is not None:
        _again(fold, command, fold.before)
        return
    inputs = _inputs_of(command)
    problem = _problem(command, fold.pinned, inputs)
    if problem is not None:
        _refuse(fold, command, *problem)
    else:
        _begin(fold, command, inputs.size or 0)


def start_digest(command: Start, step_ids: Iterable[str] | None) -> str:
    """Return the digest by which two starts are the same: definition_name, inputs, and the set of step ids.

    Naming all `step_ids` of the definition, where it is known, equals naming none.
    """
    chosen = sorted(set(command.step_ids))
    if chosen and step_ids is not None and set(chosen) >= set(step_ids):
        chosen = []
    return hashlib.sha256(_sorted([command.definition_name, _whole_inputs(command), chosen])).hexdigest()


def _whole_inputs(command: Start) -> dict[str, Any]:
    return command.inputs | {"ceremony_id": command.ceremony_id, "story_id": command.story_id}


def _again(fold: FoldContext, command: Start, row: Instance) -> None:
    known = None if fold.pinned is None else fold.pinned.steps
    if not _inputs_of(command).too_deep and start_digest(command, known) == row.start_digest:
        fold.note = "duplicate"
        return
    message = f"{command.instance_id} is there already: {row.status}; it was started with other content"
    differing = _differing(command, row, known)
    _refuse(fold, command, refusals.ALREADY_EXISTS, f"{message}: {differing}" if differing else message)


def _differing(command: Start, row: Instance, step_ids: Iterable[str] | None) -> str:
    """Name the fields in which a start differs from the row, never their values; a stub keeps the definition only."""
    names = ["definition_name"] if command.definition_name != row.definition_name else []
    if not row.expired:
        names += [f"inputs.{name}" for name in _differing_inputs(_whole_inputs(command), row.inputs)]
        chosen = set(command.step_ids)
        selects_all = not chosen or (step_ids is not None and chosen >= set(step_ids))
        if (set() if selects_all else chosen) != set(row.selected):
            names.append("step_ids")
    if not names:
        return ""
    more = len(names) - _MOST_NAMES
    listed = ", ".join(clip(name, _LONGEST_NAME) for name in names[:_MOST_NAMES])
    return f"{listed} and {more} more differ" if more > 0 else f"{listed} differ{'s' if len(names) == 1 else ''}"


def _differing_inputs(given: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """Return the names of inputs that only one start has, or whose JSON differs."""
    both = {name for name in given.keys() & kept.keys() if _sorted(given[name]) == _sorted(kept[name])}
    return sorted((given.keys() | kept.keys()) - both)


def _refuse(fold: FoldContext, command: Start, code: str, message: str) -> None:
    """Refuse with an answer and an event: the client may have been answered `accepted` before this fold."""
    fold.refuse(command, code, message)
    fold.effects.append(start_refused(command, fold.origin, fold.now, code, message))


def start_refused(command: Start, origin: Origin, at: int, code: str, message: str) -> Event:
    """Return the event of a refused start; its id comes from the log, and its texts are cut."""
    instance_id = clip(command.instance_id, _LONGEST_INSTANCE_ID)
    return Event(
        id=f"{origin.partition}/{origin.offset}/1",
        subject=START_REFUSED,
        instance_id=instance_id,
        correlation_id=clip(command.correlation_id.strip(), MAX_ID_CHARACTERS) or instance_id,
        at=at,
        payload={"instance_id": instance_id, "code": code, "message": clip(message)},
    )


def _problem(command: Start, definition: Definition | None, inputs: _Inputs) -> tuple[str, str] | None:
    if command.instance_id != f"{command.ceremony_id}:{command.story_id}":
        return refusals.INVALID_ID, "instance_id must be {ceremony_id}:{story_id}"
    for name in ("ceremony_id", "story_id"):
        if not _ID.fullmatch(getattr(command, name)):
            return refusals.INVALID_ID, f"{name} must match [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}"
    if not command.requested_by.strip():
        return refusals.ACTOR_REQUIRED, "requested_by must not be empty"
    if definition is None or definition.name != command.definition_name:
        name = clip(command.definition_name, MAX_ID_CHARACTERS)
        return refusals.DEFINITION_UNKNOWN, f"the definition {name!r} with this hash is not stored in this partition"
    unknown = [step for step in command.step_ids if step not in definition.steps]
    if unknown:
        return refusals.STEP_UNKNOWN, f"{definition.name} has no step {', '.join(unknown[:10])}"
    return _inputs_problem(command, definition, inputs)


def _inputs_problem(command: Start, definition: Definition, inputs: _Inputs) -> tuple[str, str] | None:
    if inputs.too_deep:
        return refusals.INPUTS_TOO_DEEP, f"an input nests deeper than {MAX_INPUT_DEPTH} containers"
    if inputs.size is None:
        return refusals.INPUTS_INVALID, "inputs must be JSON values"
    if inputs.size > MAX_INPUTS_BYTES:
        return refusals.INPUTS_TOO_LARGE, f"inputs have {inputs.size} bytes, at most {MAX_INPUTS_BYTES} are allowed"
    return _names_problem(command, definition)


def _names_problem(command: Start, definition: Definition) -> tuple[str, str] | None:
    inputs = command.inputs
    for name in ("ceremony_id", "story_id"):
        if name in inputs and inputs[name] != getattr(command, name):
            return refusals.INPUTS_INVALID, f"input {name} cannot be overridden"
    missing = [n for n in definition.required_inputs if n not in inputs and n not in ALWAYS_INPUTS]
    if missing:
        return refusals.INPUT_MISSING, f"{definition.name} requires the inputs {', '.join(missing)}"
    return None


class _Inputs(NamedTuple):
    """The inputs of a start, as they are measured once."""

    size: int | None
    """Bytes; None for no JSON. The sender's measure counts where it is larger."""
    too_deep: bool


def _inputs_of(command: Start) -> _Inputs:
    try:
        encoded = _sorted(command.inputs)
        size = max(len(encoded), command.inputs_size)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _Inputs(None, deeper_than(command.inputs, MAX_INPUT_DEPTH + 1))
    return _Inputs(size, deeper_than(command.inputs, MAX_INPUT_DEPTH + 1, encoded))


def _begin(fold: FoldContext, command: Start, inputs_size: int) -> None:
    definition = fold.definition
    chosen = set(command.step_ids)
    selected = tuple(step for step in definition.steps if step in chosen) if chosen else ()
    row = NextRow.start(
        instance_id=command.instance_id,
        ceremony_id=command.ceremony_id,
        story_id=command.story_id,
        definition_name=definition.name,
        definition_hash=definition.hash,
        correlation_id=clip(command.correlation_id.strip(), MAX_ID_CHARACTERS) or command.instance_id,
        requested_by=clip(command.requested_by, MAX_ID_CHARACTERS),
        start_digest=start_digest(command, definition.steps),
        inputs=_whole_inputs(command),
        inputs_size=inputs_size,
        selected=() if len(selected) == len(definition.steps) else selected,
        step_ids=tuple(definition.steps),
        now=fold.now,
        traceparent=command.traceparent[:_TRACEPARENT_CHARACTERS],
    )
    fold.begin(row)
    row.set_timer(CEREMONY_MAX, millis(definition.timeouts.ceremony_max))
    fold.enter(definition.initial)
    fold.lifecycle(
        "started",
        {
            "ceremony_id": command.ceremony_id,
            "story_id": command.story_id,
            "definition_hash": definition.hash,
            "requested_by": clip(command.requested_by, MAX_ID_CHARACTERS),
        },
    )
    if definition.states[definition.initial].terminal:
        end(fold, CeremonyStatus.COMPLETED)
    advance(fold)
