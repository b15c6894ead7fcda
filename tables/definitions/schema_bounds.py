"""JSON Schema bounded against hostile schemas and values: linear patterns, linear uniqueness, and counted work.

The fold applies schemas: one that took hours would block a partition, on every worker that takes it over. Bounds are
counts, never a clock, so that every worker comes to the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, wraps
from typing import Any

import msgspec
import re2  # type: ignore[import-untyped]
from jsonschema import FormatChecker, validators
from jsonschema.exceptions import ValidationError

from ports.errors import CeremonyError

# Keywords applied to one value; those that branch or refer count tenfold.
MOST_WORK = 200_000
_DEAR = frozenset({"$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "contains"})
_DEAR_WORK = 10
# Entries of a list or map of the schema that count as one keyword.
_LISTED = 8
# Characters searched that count as one keyword.
_SEARCHED = 1024

_options = re2.Options()
_options.log_errors = False
_options.max_mem = 1 << 20
_encode = msgspec.json.Encoder(order="sorted").encode
_Keyword = Callable[[Any, Any, Any, Any], Any]
_Errors = Iterator[ValidationError]


class TooMuchWork(CeremonyError):
    """Applying a schema to a value takes more than MOST_WORK keywords."""

    def __init__(self) -> None:
        message = f"applying the schema takes more than {MOST_WORK} steps"
        super().__init__("schema_too_much_work", message, remedy="simplify it, or send less")


class PatternInvalid(CeremonyError):
    """A pattern of a schema is no regular expression that can be matched in linear time."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_pattern", message)


class _Budget(FormatChecker):
    """The work left, shared by a validator and its sub-validators as their format checker; it checks no formats."""

    def __init__(self) -> None:
        super().__init__(formats=())
        self.left = MOST_WORK

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise TooMuchWork


@lru_cache(maxsize=1024)
def pattern(text: str) -> Any:
    """Compile a pattern with an engine of linear run time. Raises PatternInvalid."""
    try:
        return re2.compile(text, _options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else "it has no UTF-8 form"
        raise PatternInvalid(text) from None


def _spend(validator: Any, work: int) -> None:
    if isinstance(validator.format_checker, _Budget):
        validator.format_checker.spend(work)


def _found(text: str, value: str) -> bool:
    return pattern(text).search(value) is not None


def _pattern(validator: Any, wanted: Any, instance: Any, _schema: Any) -> _Errors:
    if not validator.is_type(instance, "string"):
        return
    _spend(validator, len(instance) // _SEARCHED)
    if not _found(wanted, instance):
        yield ValidationError("does not match the pattern")


def _pattern_properties(validator: Any, wanted: Any, instance: Any, _schema: Any) -> _Errors:
    if validator.is_type(instance, "object"):
        _spend(validator, len(wanted) * len(instance) // _LISTED)
        for text, inner in wanted.items():
            for name, value in instance.items():
                if _found(text, name):
                    yield from validator.descend(value, inner, path=name, schema_path=text)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> _Errors:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    _spend(validator, (1 + len(patterns)) * len(instance) // _LISTED)
    extras = [name for name in instance if name not in known and not any(_found(text, name) for text in patterns)]
    if isinstance(wanted, Mapping):
        for name in extras:
            yield from validator.descend(instance[name], wanted, path=name)
    elif not wanted and extras:
        yield ValidationError("has more properties than are allowed")


def _unique_items(validator: Any, wanted: Any, instance: Any, _schema: Any) -> _Errors:
    if wanted and validator.is_type(instance, "array"):
        different = {_encode(_plain(item)) for item in instance}
        if len(different) < len(instance):
            yield ValidationError("has elements that are not unique")


def _plain(value: Any) -> Any:
    """Write numbers alike that are equal in JSON Schema: 1 and 1.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


_OURS: dict[str, _Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}


def _counted(name: str, keyword: _Keyword) -> _Keyword:
    work = _DEAR_WORK if name in _DEAR else 1

    @wraps(keyword)
    def counted(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
        _spend(validator, work + (len(wanted) // _LISTED if isinstance(wanted, list | Mapping) else 0))
        return keyword(validator, wanted, instance, schema)

    return counted


@lru_cache(maxsize=16)
def bounded(dialect: Any) -> Any:
    """Return the validator class of a draft, with the bounds of this module."""
    ours = {name: keyword for name, keyword in _OURS.items() if name in dialect.VALIDATORS}
    return validators.extend(  # type: ignore[no-untyped-call]
        dialect, {name: _counted(name, keyword) for name, keyword in {**dialect.VALIDATORS, **ours}.items()}
    )


def budget() -> FormatChecker:
    """Return a new `format_checker` for one value; with it a validator may raise TooMuchWork."""
    return _Budget()
