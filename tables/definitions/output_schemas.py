"""Schemas of outputs: flat maps of type words, or JSON Schema; checked at load, enforced on published values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from tables.definition import Output
from tables.definitions.problems import clipped, listed
from tables.definitions.schema_bounds import (
    PatternInvalid,
    TooMuchWork,
    TooNested,
    bounded,
    linear,
    pattern,
    pattern_cost,
)
from tables.work import MOST_STEPS, Work, WorkSpent

# A schema with one of these at its top is JSON Schema, else a flat map (specification 4.5).
MARKS = ("$schema", "properties", "items", "required", "anyOf", "oneOf", "allOf", "enum")
MAX_PROBLEMS = 50


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_IS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
}
# Type word of a flat schema → type.
WORDS = {
    "string": "string",
    "str": "string",
    "number": "number",
    "int": "number",
    "float": "number",
    "boolean": "boolean",
    "bool": "boolean",
    "object": "object",
    "dict": "object",
    "array": "array",
    "list": "array",
}
# Keys whose values are data, not schemas.
_PLAIN = {"enum", "const", "default", "examples"}
_Path = tuple[str | int, ...]
# Errors of the library over schemas that are none.
_ODD = (AttributeError, LookupError, TypeError, ValueError)


def is_json_schema(schema: Mapping[str, Any]) -> bool:
    return any(mark in schema for mark in MARKS)


def required_fields(output: Output) -> list[str]:
    """List the fields that an object must have to fit the output, as far as the top of its schema says so."""
    schema = output.schema or {}
    return [str(name) for name in (schema.get("required", ()) if is_json_schema(schema) else schema)]


def schema_problems(output: Output, work: Work | None = None, *, pinned: bool = False) -> list[tuple[_Path, str, str]]:
    """List the mistakes of an output's schema: (path inside it, rule code, message after its name).

    Patterns are compiled as far as the work goes. The JSON Schema of a pinned definition was checked when it was new;
    it is not checked again while its partition waits.
    """
    schema = output.schema or {}
    if is_json_schema(schema):
        return [] if pinned else _json_schema_problems(schema, Work() if work is None else work)
    found: list[tuple[_Path, str, str]] = []
    for name, word in schema.items():
        if not isinstance(word, str) or word not in WORDS:
            message = f".{clipped(name)} is `{clipped(word)}`, no type word: use one of {listed(WORDS, len(WORDS))}"
            found.append(((name,), "unknown_type_word", message))
    return found


def _json_schema_problems(schema: Mapping[str, Any], work: Work) -> list[tuple[_Path, str, str]]:
    checker = _dialect(schema)
    if checker is None:
        return [(("$schema",), "bad_json_schema", ": `$schema` names no JSON Schema draft that is known here")]
    try:
        meta: Any = linear(validator_for(checker.META_SCHEMA, default=Draft202012Validator))
        errors = sorted(meta(checker.META_SCHEMA).iter_errors(schema), key=_place)
        found = [
            (tuple(e.absolute_path), "bad_json_schema", f"{_at(e.absolute_path)}: {_broken_rule(e)}") for e in errors
        ]
    except RecursionError:
        return [((), "bad_json_schema", " is nested too deeply")]
    return found + [
        (path, "bad_json_schema", _at(path) + message)
        for path, message in _unsound(_resolver(schema), schema, (), work)
    ]


def _dialect(schema: Mapping[str, Any]) -> Any:
    """Return the validator of the draft that the schema names (default 2020-12), or None for an unknown one."""
    if "$schema" not in schema:
        return Draft202012Validator
    named: Any = schema["$schema"]
    return validator_for({"$schema": named}, default=cast("Any", None)) if isinstance(named, str) else None


def _resolver(schema: Mapping[str, Any]) -> Any:
    resource = DRAFT202012.create_resource(dict(schema))
    registry = Registry().with_resource("", resource)
    with suppress(*_ODD):  # the meta-schema reports them
        registry = registry.crawl()
    return registry.resolver("")


def _unsound(resolver: Any, schema: Any, path: _Path, work: Work) -> Iterator[tuple[_Path, str]]:
    """Yield mistakes that the meta-schema does not see: references that lead nowhere, invalid patterns."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in {"$ref", "$dynamicRef"} and isinstance(value, str) and not _leads_inside(resolver, value):
                yield (*path, key), ": must lead to a place inside this schema (`#/…`)"
            elif key == "pattern" and isinstance(value, str) and (wrong := _wrong_pattern(value, work)):
                yield (*path, key), wrong
            elif key == "patternProperties" and isinstance(value, Mapping):
                yield from _unsound_patterns(resolver, value, (*path, key), work)
            elif key == "unevaluatedProperties" and "patternProperties" in schema:
                yield (*path, key), ": cannot stand beside `patternProperties`; use `additionalProperties`"
            elif key not in _PLAIN:
                yield from _unsound(resolver, value, (*path, key), work)
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _unsound(resolver, value, (*path, index), work)


def _leads_inside(resolver: Any, reference: str) -> bool:
    """Return whether a reference is a pointer or an anchor to a schema inside this schema."""
    if not reference.startswith("#"):
        return False
    try:
        return isinstance(resolver.lookup(reference).contents, Mapping | bool)
    except (Unresolvable, *_ODD):  # pointers into lists and scalars
        return False


def _unsound_patterns(
    resolver: Any, patterns: Mapping[Any, Any], path: _Path, work: Work
) -> Iterator[tuple[_Path, str]]:
    for text, inner in patterns.items():
        if wrong := _wrong_pattern(str(text), work):
            yield (*path, text), wrong
        yield from _unsound(resolver, inner, (*path, text), work)


def _wrong_pattern(text: str, work: Work) -> str:
    """Return the mistake of a pattern, or ""."""
    try:
        work.spend(pattern_cost(text, work.left))
        pattern(text)
    except WorkSpent:
        return f": the patterns of this file take more than {MOST_STEPS} steps to compile; make them simpler"
    except PatternInvalid as error:
        return f": is no regular expression that can be matched in linear time: {error.message}"
    return ""


def check_value(value: Any, output: Output, work: Work | None = None) -> list[str]:
    """List violations of the output's type and schema: `$.path: rule`, never the value itself. Never raises."""
    if not _IS[output.type](value):
        return [f"$: must be of type {output.type}"]
    schema = output.schema or {}
    if not schema:
        return []
    if is_json_schema(schema):
        return _check_json_schema(value, schema, Work() if work is None else work)
    if output.type == "array":  # each element is one record of the flat map
        return [p for index, item in enumerate(value) for p in _check_flat(item, schema, f"$[{index}]")][:MAX_PROBLEMS]
    return _check_flat(value, schema, "$")


def _check_flat(value: Any, schema: Mapping[str, Any], path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: must be of type object"]
    found = []
    for name, word in schema.items():
        if name not in value:
            found.append(f"{path}{_at((name,))}: is missing")
        elif not _IS[WORDS[word]](value[name]):
            found.append(f"{path}{_at((name,))}: must be of type {WORDS[word]}")
    return found


def _check_json_schema(value: Any, schema: Mapping[str, Any], work: Work) -> list[str]:
    checker = _dialect(schema)
    if checker is None:
        return ["$: the schema cannot be applied; its `$schema` is not known"]
    try:
        errors = bounded(checker, schema).errors(value, MAX_PROBLEMS, work)
        return [f"${_at(error.absolute_path)}: {_broken_rule(error)}" for error in sorted(errors, key=_place)]
    except TooMuchWork as error:
        return [f"$: {error.message}; {error.remedy}"]
    except (TooNested, RecursionError):
        return ["$: the schema or the value is nested too deeply"]
    except Exception:  # noqa: BLE001 - odd schemas make jsonschema raise errors of any kind
        return ["$: the schema cannot be applied; see that its `$ref` and `pattern` are sound"]


def _place(error: ValidationError) -> tuple[str, str]:
    return _at(error.absolute_path), f"{error.validator}"


def _broken_rule(error: ValidationError) -> str:
    """Return the broken rule and its requirement, never the value."""
    rule, asked = f"{error.validator}", cast("Any", error.validator_value)
    if rule == "required" and isinstance(error.instance, dict):
        missing = [name for name in asked if name not in error.instance]
        return f"needs {listed(map(str, missing))}"
    if rule == "additionalProperties" and isinstance(error.schema, Mapping) and "patternProperties" not in error.schema:
        known = error.schema.get("properties", {})
        return f"allows no {listed(str(name) for name in cast('Any', error.instance) if name not in known)}"
    if rule == "type":
        return f"must be of type {asked if isinstance(asked, str) else ' or '.join(map(str, asked))}"
    if rule in ("enum", "const", "pattern", "format") or _is_number(asked):
        return f"breaks `{rule}: {clipped(asked)}`"
    return f"breaks `{rule}`"


def _at(path: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{clipped(part)}" for part in path)
