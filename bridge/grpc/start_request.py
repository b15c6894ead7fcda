"""Checks a start request and makes the Start command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ports.errors import CeremonyError
from tables.commands import Start
from tables.definition import Definition
from tables.fold.refusals import (
    INPUT_MISSING,
    INPUTS_INVALID,
    INPUTS_TOO_DEEP,
    INPUTS_TOO_LARGE,
    INVALID_ID,
    STEP_UNKNOWN,
)
from tables.limits import MAX_ID_CHARACTERS

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Nested containers of an input.
DEEPEST = 64
LARGEST_INPUTS_BYTES = 256 * 1024
# Characters of all inputs before parsing; larger requests are refused unparsed, so that they delay no other call.
LONGEST_INPUT_TEXTS = 4 * LARGEST_INPUTS_BYTES
# Every integer with so few characters fits into 64 bits.
SHORT_INTEGER = 18
# Characters of correlation_id and requested_by; rows keep as many, so none is shortened.
LONGEST_TEXT = MAX_ID_CHARACTERS


class StartInvalid(CeremonyError):
    """The request breaks a rule; the message names the field and a valid value."""


def start_command(
    definition: Definition,
    *,
    ceremony_id: str,
    story_id: str,
    correlation_id: str,
    inputs: Mapping[str, str],
    rich_inputs: Mapping[str, Any],
    step_ids: Sequence[str],
    requested_by: str,
    command_id: str,
) -> Start:
    """Make the command. Raises StartInvalid for the first broken rule; `check_ids` has checked the identifiers."""
    values = _inputs(definition, inputs, rich_inputs, {"ceremony_id": ceremony_id, "story_id": story_id})
    size = len(msgspec.json.encode(values))
    if size > LARGEST_INPUTS_BYTES:
        raise StartInvalid(
            INPUTS_TOO_LARGE, f"inputs are {size} bytes of JSON, at most {LARGEST_INPUTS_BYTES} are taken"
        )
    instance_id = f"{ceremony_id}:{story_id}"
    return Start(
        instance_id=instance_id,
        ceremony_id=ceremony_id,
        story_id=story_id,
        definition_name=definition.name,
        definition_hash=definition.hash,
        correlation_id=correlation_id.strip() or instance_id,
        requested_by=requested_by,
        inputs=values,
        inputs_size=size,
        step_ids=_selected(definition, step_ids),
        command_id=command_id,
    )


def check_ids(*, ceremony_id: str, story_id: str, definition_name: str, requested_by: str, correlation_id: str) -> None:
    """Raises StartInvalid unless all required fields are present and well formed."""
    for name, value in (("ceremony_id", ceremony_id), ("story_id", story_id)):
        if not value:
            raise StartInvalid("field_required", f"{name} is required")
        if ID.fullmatch(value) is None:
            raise StartInvalid(
                INVALID_ID,
                f"{name} must be 1 to 128 characters of A-Z a-z 0-9 . _ - and begin with a letter or digit",
            )
    for name, value in (("definition_name", definition_name), ("requested_by", requested_by)):
        if not value.strip():
            raise StartInvalid("field_required", f"{name} is required")
    for name, value in (("requested_by", requested_by), ("correlation_id", correlation_id)):
        if len(value) > LONGEST_TEXT:
            raise StartInvalid(
                "field_too_long", f"{name} has {len(value)} characters, at most {LONGEST_TEXT} are taken"
            )


def _inputs(
    definition: Definition, inputs: Mapping[str, str], rich: Mapping[str, Any], ids: Mapping[str, str]
) -> dict[str, Any]:
    """Parse the inputs and add ceremony_id and story_id.

    Refuses the inputs that the fold would refuse, with the same codes, before a command is appended.
    """
    both = sorted(inputs.keys() & rich.keys())
    if both:
        raise StartInvalid("input_twice", f"{_few(both)}: given in both inputs and inputs_json; give each once")
    given = sum(len(name) + len(text) for name, text in inputs.items())
    if given > LONGEST_INPUT_TEXTS:
        raise StartInvalid(INPUTS_TOO_LARGE, f"inputs are {given} characters, at most {LONGEST_INPUT_TEXTS} are read")
    values = {name: parse_input(name, text) for name, text in inputs.items()}
    values.update({name: _rich(name, value) for name, value in rich.items()})
    for name, value in ids.items():
        if values.setdefault(name, value) != value:
            raise StartInvalid(INPUTS_INVALID, f"{name} is an input by itself and cannot be overridden")
    if missing := [name for name in definition.required_inputs if name not in values]:
        raise StartInvalid(INPUT_MISSING, f"{definition.name} requires {', '.join(missing)}")
    return values


def _few(names: Sequence[str]) -> str:
    """The first of a client's names, shortened; there may be ten thousand, of any length."""
    return ", ".join(name[:64] for name in names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")


def parse_input(name: str, text: str) -> Any:
    """Parse a JSON object or array; any other text stays a string, and so does JSON with NaN or Infinity."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
        if "\\u" in text:
            msgspec.json.encode(value)  # half a surrogate pair raises ValueError
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError:
        return text
    if nesting(text) > DEEPEST:
        raise _too_deep(name)
    return value


def _too_deep(name: str) -> StartInvalid:
    return StartInvalid(INPUTS_TOO_DEEP, f"{name}: nested deeper than {DEEPEST} containers")


def nesting(text: str) -> int:
    """Depth of nested brackets outside strings; takes linear time also on hostile input."""
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):
        mark = token.group()
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _refuse(word: str) -> Any:
    raise ValueError(word)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(digits)
    return number


def _whole(digits: str) -> int | float:
    """Integers above 64 bits become floats, as in every JSON reader of the fleet."""
    if len(digits) <= SHORT_INTEGER:
        return int(digits)
    number = _finite(digits)
    return int(digits) if -(2**63) <= number < 2**63 else number


def _rich(name: str, value: Any, depth: int = 1) -> Any:
    """Convert a Struct's value: whole numbers become integers, so that both forms of an input are equal."""
    if isinstance(value, Mapping | list) and depth > DEEPEST:
        raise _too_deep(name)
    if isinstance(value, Mapping):
        return {key: _rich(name, inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rich(name, inner, depth + 1) for inner in value]
    if value is ...:
        raise StartInvalid(INPUTS_INVALID, f"{name}: a value of inputs_json has no kind")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise StartInvalid(INPUTS_INVALID, f"{name}: NaN and Infinity are no JSON")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value


def _selected(definition: Definition, step_ids: Sequence[str]) -> tuple[str, ...]:
    wanted = set(step_ids)
    if unknown := sorted(wanted - definition.steps.keys()):
        known = ", ".join(definition.steps)
        raise StartInvalid(STEP_UNKNOWN, f"{definition.name} has no step {_few(unknown)}; it has: {known}")
    return tuple(step_id for step_id in definition.steps if step_id in wanted)
