"""Checks a start request and makes the Start command, in pieces between which other calls are served."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
from google.protobuf.struct_pb2 import Struct, Value

from bridge.grpc.violation import MOST_NAMED, Violation
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
# Bytes of a request; a larger one is refused undecoded. Inputs in a Struct take at most 5.5 times as much as in JSON,
# and texts are at most LONGEST_INPUT_TEXTS long.
LARGEST_START_BYTES = 6 * LARGEST_INPUTS_BYTES
# Values of inputs that are converted, or texts that are parsed, before other calls get the event loop.
VALUES_PER_PIECE = 200
# Values of a request that are converted without waiting for a turn: nearly every start has fewer.
VALUES_AT_ONCE = 100
# Characters of JSON that are searched for brackets or digits before other calls get the event loop.
CHARACTERS_PER_PIECE = 8 * 1024
# The least bytes of JSON of a value in a list, with its comma, and of a named text.
LEAST_VALUE_BYTES, LEAST_NAMED_TEXT_BYTES = 2, 6
# Ids in step_ids, of which a definition has far fewer.
MOST_STEP_IDS = 10_000
# A whole number of fewer digits is a finite double, and needs no check.
LONG_INTEGER_DIGITS = 309
# Above it a double, the only number of a Struct, stands for several whole numbers.
LARGEST_EXACT = 2**53
# Characters of correlation_id and requested_by; rows keep as many, so none is shortened.
LONGEST_TEXT = MAX_ID_CHARACTERS

_PLAIN_TYPES = frozenset({str, float, int, bool, type(None)})
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_LONG_INTEGER = re.compile(rf"[0-9]{{{LONG_INTEGER_DIGITS}}}")


class StartInvalid(CeremonyError):
    """The request breaks a rule; the message names the field and a valid value."""

    def __init__(self, code: str, message: str, field: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(code, message)
        self.violations = violations or (Violation(field, code, message),)
        """All that this check found; by default the one of the message."""


def start_pieces(
    definition: Definition,
    *,
    ceremony_id: str,
    story_id: str,
    correlation_id: str,
    inputs: Mapping[str, str],
    rich_inputs: Mapping[str, Any] | Struct,
    step_ids: Sequence[str],
    requested_by: str,
    command_id: str,
) -> Generator[None, None, Start]:
    """Make the command, and yield after each piece of the work.

    Raises StartInvalid for the first broken rule; `check_ids` has checked the identifiers.
    """
    values = yield from _inputs(definition, inputs, rich_inputs, {"ceremony_id": ceremony_id, "story_id": story_id})
    size = len(msgspec.json.encode(values))
    if size > LARGEST_INPUTS_BYTES:
        raise StartInvalid(
            INPUTS_TOO_LARGE, f"inputs are {size} bytes of JSON, at most {LARGEST_INPUTS_BYTES} are taken", "inputs"
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
    found = [
        *_broken_ids(ceremony_id=ceremony_id, story_id=story_id),
        *_blank(definition_name=definition_name, requested_by=requested_by),
        *_too_long(requested_by=requested_by, correlation_id=correlation_id),
    ]
    if found:
        raise StartInvalid(found[0].code, found[0].description, found[0].field, found)


def _broken_ids(**ids: str) -> Iterator[Violation]:
    for name, value in ids.items():
        if not value:
            yield Violation(name, "field_required", f"{name} is required")
        elif ID.fullmatch(value) is None:
            text = f"{name} must be 1 to 128 characters of A-Z a-z 0-9 . _ - and begin with a letter or digit"
            yield Violation(name, INVALID_ID, text)


def _blank(**fields: str) -> Iterator[Violation]:
    for name, value in fields.items():
        if not value.strip():
            yield Violation(name, "field_required", f"{name} is required")


def _too_long(**fields: str) -> Iterator[Violation]:
    for name, value in fields.items():
        if len(value) > LONGEST_TEXT:
            text = f"{name} has {len(value)} characters, at most {LONGEST_TEXT} are taken"
            yield Violation(name, "field_too_long", text)


def _inputs(
    definition: Definition, inputs: Mapping[str, str], rich_inputs: Mapping[str, Any] | Struct, ids: Mapping[str, str]
) -> Generator[None, None, dict[str, Any]]:
    """Parse the inputs and add ceremony_id and story_id.

    Refuses the inputs that the fold would refuse, with the same codes, before a command is appended.
    """
    rich = rich_inputs.fields if isinstance(rich_inputs, Struct) else rich_inputs
    _require_few(len(inputs) + len(rich))
    if both := sorted(name for name in rich if name in inputs):
        text = "given in both inputs and inputs_json; give each once"
        raise StartInvalid("input_twice", f"{_few(both)}: {text}", "inputs", _each("input_twice", text, both))
    values = yield from _parsed(inputs)
    values.update((yield from _converted(rich)))
    for name, value in ids.items():
        if values.setdefault(name, value) != value:
            raise StartInvalid(INPUTS_INVALID, f"{name} is an input by itself and cannot be overridden", _path(name))
    if missing := [name for name in definition.required_inputs if name not in values]:
        each = _each(INPUT_MISSING, f"{definition.name} requires it", missing)
        raise StartInvalid(INPUT_MISSING, f"{definition.name} requires {', '.join(missing)}", "inputs", each)
    return values


def _each(code: str, text: str, names: Iterable[str]) -> list[Violation]:
    return [Violation(_path(name), code, text) for name in islice(names, MOST_NAMED)]


def _path(name: str) -> str:
    return f"inputs.{name}"


def _require_few(count: int) -> None:
    if count * LEAST_NAMED_TEXT_BYTES > LARGEST_INPUTS_BYTES:
        raise StartInvalid(
            INPUTS_TOO_LARGE, f"{count} inputs are more than {LARGEST_INPUTS_BYTES} bytes of JSON", "inputs"
        )


def _parsed(inputs: Mapping[str, str]) -> Generator[None, None, dict[str, Any]]:
    given = sum(len(name) + len(text) for name, text in inputs.items())
    if given > LONGEST_INPUT_TEXTS:
        message = f"inputs are {given} characters, at most {LONGEST_INPUT_TEXTS} are read"
        raise StartInvalid(INPUTS_TOO_LARGE, message, "inputs")
    values, unpaused = {}, 0
    for number, (name, text) in enumerate(inputs.items(), start=1):
        unpaused += len(text)
        if unpaused > CHARACTERS_PER_PIECE or number % VALUES_PER_PIECE == VALUES_AT_ONCE:
            unpaused = 0
            yield
        values[name] = yield from parse_pieces(name, text)
    return values


def _few(names: Sequence[str]) -> str:
    """The first of a client's names, shortened; there may be ten thousand, of any length."""
    return ", ".join(name[:64] for name in names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")


def parse_pieces(name: str, text: str) -> Generator[None, None, Any]:
    """Parse a JSON object or array; any other text stays a string, and so does JSON with NaN or Infinity."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    if (least := _least_json_bytes(text)) > LARGEST_INPUTS_BYTES:
        yield from _require_shallow(name, text)
        message = f"{name} is {least} bytes of JSON or more, at most {LARGEST_INPUTS_BYTES} are taken"
        raise StartInvalid(INPUTS_TOO_LARGE, message, _path(name))
    try:
        msgspec.json.decode(text, type=msgspec.Raw)  # makes no values: a text that is no JSON costs little
        value = _loads(text)
        if "\\u" in text:
            msgspec.json.encode(value)  # half a surrogate pair raises ValueError
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError:
        return text
    if len(text) > CHARACTERS_PER_PIECE:
        yield
    if not (yield from _finite(text, value)):
        return text
    yield from _require_shallow(name, text)
    return value


def _require_shallow(name: str, text: str) -> Generator[None, None, None]:
    for depth in _depths(text):
        if depth is None:
            yield
        elif depth > DEEPEST:
            raise _too_deep(name)


def _least_json_bytes(text: str) -> int:
    """A lower bound of the bytes that the text takes without white space: an escape of six characters is one byte."""
    return len(text) - sum(map(text.count, " \t\n\r")) - 5 * text.count("\\")


def _loads(text: str) -> Any:
    """Parse JSON; numbers are exact as with `json`. Raises ValueError also for a float beyond all doubles."""
    return msgspec.json.decode(text)


def _finite(text: str, value: Any) -> Generator[None, None, bool]:
    """Return False for a value that contains a whole number beyond all doubles."""
    if not (yield from _has_long_integer(text)):
        return True
    containers = [value]
    checked = 0
    while containers:
        container = containers.pop()
        for item in container.values() if isinstance(container, dict) else container:
            if isinstance(item, dict | list):
                containers.append(item)
            elif isinstance(item, int) and not _is_double(item):
                return False
            checked += 1
            if checked % VALUES_PER_PIECE == 0:
                yield
    return True


def _has_long_integer(text: str) -> Generator[None, None, bool]:
    for first in range(0, len(text), CHARACTERS_PER_PIECE):
        if first:
            yield
        if _LONG_INTEGER.search(text, first, first + CHARACTERS_PER_PIECE + LONG_INTEGER_DIGITS) is not None:
            return True
    return False


def _is_double(number: int) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def _too_deep(name: str) -> StartInvalid:
    return StartInvalid(INPUTS_TOO_DEEP, f"{name}: nested deeper than {DEEPEST} containers", _path(name))


def _depths(text: str) -> Iterator[int | None]:
    """The depth after each opening bracket outside strings, and None after each piece of the text.

    Takes linear time also on hostile input.
    """
    depth = searched = 0
    for token in _BRACKET.finditer(text):
        mark = token.group()
        if mark in "[{":
            depth += 1
            yield depth
        elif mark in "]}":
            depth -= 1
        if token.end() - searched > CHARACTERS_PER_PIECE:
            searched = token.end()
            yield None


def _converted(rich: Mapping[str, Any]) -> Generator[None, None, dict[str, Any]]:
    """Convert the values of a Struct, or of Python, and refuse them as soon as their JSON is certainly too large.

    Takes no recursion, so it can stop after any value.
    """
    made: dict[str, Any] = {}
    levels: list[tuple[Any, Iterator[tuple[str, Any]]]] = [(made, iter(rich.items()))]
    name, size, number = "", LEAST_VALUE_BYTES * len(rich), 0
    while levels:
        container, items = levels[-1]
        item = next(items, None)
        if item is None:
            levels.pop()
            continue
        key, given = item
        name = key if container is made else name
        value = _plain(given)
        number += 1
        size += len(key) + _least_content_bytes(value)
        if size > LARGEST_INPUTS_BYTES:
            message = f"inputs_json is more than {LARGEST_INPUTS_BYTES} bytes of JSON"
            raise StartInvalid(INPUTS_TOO_LARGE, message, "inputs_json")
        if _is_container(value):
            if len(levels) > DEEPEST:
                raise _too_deep(name)
            inner, value = _opened(value)
            levels.append((value, inner))
        else:
            value = _scalar(name, value)
        if isinstance(container, dict):
            container[key] = value
        else:
            container.append(value)
        if number % VALUES_PER_PIECE == VALUES_AT_ONCE:
            yield
    return made


def _least_content_bytes(value: Any) -> int:
    """A lower bound of the JSON bytes inside of a value, so that a long list is refused before its values are read."""
    if isinstance(value, str):
        return len(value)
    return LEAST_VALUE_BYTES * len(value) if _is_container(value) else 0


def _is_container(value: Any) -> bool:
    """Return whether a value holds others. Plain values come first: a question for an abstract class is dear."""
    if type(value) in _PLAIN_TYPES:
        return False
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str)


def _opened(value: Mapping[str, Any] | Sequence[Any]) -> tuple[Iterator[tuple[str, Any]], dict[str, Any] | list[Any]]:
    """The named values of a container, and the container that receives them."""
    if isinstance(value, Mapping):
        return iter(value.items()), {}
    return (("", item) for item in value), []


def _plain(value: Any) -> Any:
    """The content of a Struct's value; without a kind it is `...`, which no JSON value is. Others are returned as is.

    protobuf's own conversion raises for NaN, Infinity and a value without a kind.
    """
    if not isinstance(value, Value):
        return value
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return value.struct_value.fields
    if kind == "list_value":
        return value.list_value.values
    if kind == "null_value":
        return None
    return ... if kind is None else getattr(value, kind)


def _scalar(name: str, value: Any) -> Any:
    """A value that is no container. Whole numbers become integers, so that both forms of an input are equal."""
    if value is ...:
        raise StartInvalid(INPUTS_INVALID, f"{name}: a value of inputs_json has no kind", _path(name))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise StartInvalid(INPUTS_INVALID, f"{name}: NaN and Infinity are no JSON", _path(name))
        if not value.is_integer():
            return value
        if abs(value) > LARGEST_EXACT:
            message = f"{name}: a Struct holds no whole number beyond 2^53 exactly; give it as JSON text in inputs"
            raise StartInvalid(INPUTS_INVALID, message, _path(name))
        return int(value)
    return value


def _selected(definition: Definition, step_ids: Sequence[str]) -> tuple[str, ...]:
    if len(step_ids) > MOST_STEP_IDS:
        message = f"step_ids has {len(step_ids)} ids, at most {MOST_STEP_IDS} are taken"
        raise StartInvalid("field_too_long", message, "step_ids")
    wanted = set(step_ids)
    if unknown := sorted(wanted - definition.steps.keys()):
        known = ", ".join(definition.steps)
        message = f"{definition.name} has no step {_few(unknown)}; it has: {known}"
        text = f"{definition.name} has no step of this id"
        each = [Violation(f"step_ids.{one}", STEP_UNKNOWN, text) for one in unknown[:MOST_NAMED]]
        raise StartInvalid(STEP_UNKNOWN, message, "step_ids", each)
    return tuple(step_id for step_id in definition.steps if step_id in wanted)
