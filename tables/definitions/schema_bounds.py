"""JSON Schema bounded against hostile schemas and values: linear patterns, linear uniqueness, and counted work.

The fold applies schemas: one that took hours would block a partition, on every worker that takes it over. Bounds are
counts, never a clock or the depth of the caller's stack, so that every worker comes to the same answer. A step is about
ten nanoseconds. A schema is prepared once: each of its parts and references is looked up at its first use only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import re2  # type: ignore[import-untyped]
from jsonschema import FormatChecker, validators
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.jsonschema import DRAFT202012, specification_with

from ports.errors import CeremonyError
from tables.patterns import call_cost, match_cost, pattern_weight
from tables.sizes import size_of, text_bytes
from tables.work import Work

# Steps of applying one schema to one value.
MOST_STEPS = 4_400_000
# Parts of a schema that are applied inside one another.
MOST_NESTED = 260
# Keywords that apply parts to the same value, in a schema with `unevaluatedItems` or `unevaluatedProperties`.
MOST_IN_PLACE = 150
KEPT_SCHEMAS = 256
KEPT_PATTERNS = 64

_PART, _UNPREPARED, _KEYWORD, _LISTED, _ERROR = 120, 4000, 60, 8, 300
_ERROR_CHARACTER, _ENCODED_VALUE, _ENCODED_BYTES, _UNEVALUATED = 2, 120, 8, 5
# Steps of handing a pattern to the library, and of weighing each of its characters, which compiling outweighs.
_PATTERN, _WEIGHED = 600, 80
# Steps of looking for evaluated items in each keyword that applies parts to the same value, whose parts are counted.
_LOOKED_FOR = 1600
# Steps of preparing each value and each object of a schema, counted once for each command, as if it had not been kept.
_PREPARED_VALUE, _PREPARED_OBJECT = 40, 800
# Levels of the stack that a part takes at most, in the two ways in which parts are applied.
_DESCENDS, _JUDGES = 1, 2
_IN_PLACE = frozenset(
    {
        *("$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not"),
        *("if", "then", "else", "dependentSchemas"),
    }
)
_UNEVALUATED_KEYWORDS = ("unevaluatedItems", "unevaluatedProperties")
_DYNAMIC = ("$dynamicRef", "$recursiveRef")

_options = re2.Options()
_options.log_errors = False
_options.max_mem = 1 << 20
_encode = msgspec.json.Encoder(order="sorted").encode
_Keyword = Callable[[Any, Any, Any, Any], Any]
_Errors = Iterator[ValidationError]
# The keyword of an error of the schema `false`, as the library has it.
_NO_KEYWORD: Any = None


class TooMuchWork(CeremonyError):
    """Applying a schema to a value takes more steps than it may."""

    def __init__(self) -> None:
        message = f"applying the schema takes more than {MOST_STEPS} steps"
        super().__init__("schema_too_much_work", message, remedy="simplify it, or send less")


class TooNested(CeremonyError):
    """The parts of a schema are applied inside one another more than MOST_NESTED times."""

    def __init__(self) -> None:
        super().__init__("schema_too_nested", "the schema or the value is nested too deeply")


class PatternInvalid(CeremonyError):
    """A pattern of a schema is no regular expression that can be matched in linear time."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_pattern", message)


@lru_cache(maxsize=KEPT_PATTERNS)
def pattern(text: str) -> Any:
    """Compile a pattern with an engine of linear run time. Raises PatternInvalid."""
    try:
        return re2.compile(text, _options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else "it has no UTF-8 form"
        raise PatternInvalid(text) from None


def pattern_cost(text: str, left: int) -> int:
    """Return the steps of compiling a pattern. One that is too long to be weighed in the steps left costs more."""
    weighing = _WEIGHED * len(text)
    return weighing if weighing > left else _PATTERN + call_cost(text, pattern_weight(text))


class _Part(NamedTuple):
    """One part of a schema with the keywords that apply, each with its value and steps."""

    validator: Any
    keywords: tuple[tuple[_Keyword, str, Any, int], ...]


class _Facts(NamedTuple):
    """Facts of a schema that its whole text tells."""

    values: int
    objects: int
    in_place: int
    is_unevaluated: bool
    is_dynamic: bool
    has_inner_id: bool

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> _Facts:
        values = objects = in_place = 0
        keys: set[str] = set()
        left: list[Any] = [dict(schema) | {"$id": None}]
        while left:
            item = left.pop()
            values += 1
            if isinstance(item, Mapping):
                objects += 1
                keys.update(name for name, value in item.items() if value is not None)
                in_place += sum(name in _IN_PLACE for name in item)
                left += item.values()
            elif isinstance(item, list):
                left += item
        return cls(
            values,
            objects,
            in_place,
            not keys.isdisjoint(_UNEVALUATED_KEYWORDS),
            not keys.isdisjoint(_DYNAMIC),
            not keys.isdisjoint(("$id", "id")),
        )


class _Budget(FormatChecker):
    """The work left for one value, and the prepared parts of the schema.

    A validator and all its sub-validators share it as their format checker; it checks no formats.
    """

    def __init__(self, facts: _Facts) -> None:
        super().__init__(formats=())
        self.facts = facts
        self.prepares = not (facts.has_inner_id and facts.is_dynamic)
        """False where a part may mean something else each time it is applied."""
        self.left = 0
        self._nested = 0
        self._compiled: dict[str, Any] = {}
        """Patterns of this value. They are held here, as every cache of compiled ones may drop them meanwhile."""
        self._parts: dict[int, _Part] = {}
        self._allowed: dict[int, frozenset[Any]] = {}
        self._references: dict[tuple[int, str], Any] = {}

    def start(self, steps: int) -> None:
        self.left, self._nested = steps, 0
        self._compiled.clear()

    def forget(self) -> None:
        """Hold no patterns until the next value."""
        self._compiled.clear()

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooMuchWork

    def enter(self, levels: int) -> None:
        self._nested += levels
        if self._nested > MOST_NESTED:
            raise TooNested

    def leave(self, levels: int) -> None:
        self._nested -= levels

    def part(self, validator: Any, schema: Any, resolver: Any) -> _Part:
        if not self.prepares:
            self.spend(_UNPREPARED)
            return _prepared(validator, schema, resolver)
        found = self._parts.get(id(schema))
        if found is None:
            found = self._parts[id(schema)] = _prepared(validator, schema, resolver)
        return found

    def referred(self, validator: Any, reference: str) -> Any:
        if not self.prepares:
            self.spend(_UNPREPARED)
            return validator._resolver.lookup(reference)  # noqa: SLF001 - no public name
        key = id(validator), reference
        found = self._references.get(key)
        if found is None:
            found = self._references[key] = validator._resolver.lookup(reference)  # noqa: SLF001 - no public name
        return found

    def allowed(self, values: list[Any]) -> frozenset[Any]:
        """Return the values of an `enum`, for look-ups."""
        found = self._allowed.get(id(values))
        if found is None:
            found = self._allowed[id(values)] = frozenset(map(_key, values))
        return found

    def key(self, value: Any) -> Any:
        self.spend_encoding(value)
        return _key(value)

    def spend_encoding(self, value: Any) -> None:
        size = size_of(value, MOST_STEPS)
        self.spend(size.values * _ENCODED_VALUE + size.text_bytes // _ENCODED_BYTES)

    def spend_unevaluated(self, instance: Any) -> None:
        if isinstance(instance, Mapping | list):
            self.spend(_LOOKED_FOR * (1 + self.facts.in_place))
            self.spend(_UNEVALUATED * len(instance) * (len(instance) + self.facts.values))

    def matches(self, text: str, value: str) -> bool:
        compiled = self._compiled.get(text)
        if compiled is None:
            compiled = self._compile(text)
        self.spend(match_cost(pattern_weight(text), text_bytes(value)))
        return compiled.search(value) is not None

    def _compile(self, text: str) -> Any:
        """Compile a pattern, counted as if no cache had it: once for each value, of many patterns at each call."""
        self.spend(pattern_cost(text, self.left))
        compiled = pattern(text)
        if len(self._compiled) < KEPT_PATTERNS:
            self._compiled[text] = compiled
        return compiled


def _found(validator: Any, text: str, value: str) -> bool:
    budget = validator.format_checker
    return budget.matches(text, value) if isinstance(budget, _Budget) else pattern(text).search(value) is not None


def _spend_encoding(validator: Any, value: Any) -> None:
    if isinstance(validator.format_checker, _Budget):
        validator.format_checker.spend_encoding(value)


# -- keywords


def _pattern(validator: Any, wanted: Any, instance: Any, _schema: Any) -> _Errors:
    if validator.is_type(instance, "string") and not _found(validator, wanted, instance):
        yield ValidationError("does not match the pattern")


def _pattern_properties(validator: Any, wanted: Any, instance: Any, _schema: Any) -> _Errors:
    if validator.is_type(instance, "object"):
        for text, inner in wanted.items():
            for name, value in instance.items():
                if _found(validator, text, name):
                    yield from validator.descend(value, inner, path=name, schema_path=text)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> _Errors:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extras = [
        name for name in instance if name not in known and not any(_found(validator, text, name) for text in patterns)
    ]
    if isinstance(wanted, Mapping):
        for name in extras:
            yield from validator.descend(instance[name], wanted, path=name)
    elif not wanted and extras:
        yield ValidationError("has more properties than are allowed")


def _unique_items(validator: Any, wanted: Any, instance: Any, _schema: Any) -> _Errors:
    if wanted and validator.is_type(instance, "array"):
        _spend_encoding(validator, instance)
        different = {_encode(_plain(item)) for item in instance}
        if len(different) < len(instance):
            yield ValidationError("has elements that are not unique")


def _enum(validator: Any, wanted: Any, instance: Any, _schema: Any) -> _Errors:
    budget = validator.format_checker
    if isinstance(budget, _Budget):
        known = budget.key(instance) in budget.allowed(wanted)
    else:
        known = _key(instance) in map(_key, wanted)
    if not known:
        yield ValidationError("is none of the values")


def _const(validator: Any, wanted: Any, instance: Any, _schema: Any) -> _Errors:
    _spend_encoding(validator, instance)
    if _key(instance) != _key(wanted):
        yield ValidationError("is not the value")


def _key(value: Any) -> Any:
    """Return a key that two values share if they are equal in JSON Schema."""
    if isinstance(value, bool):
        return (value,)
    return _encode(_plain(value)) if isinstance(value, Mapping | list) else _plain(value)


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
    "enum": _enum,
    "const": _const,
}


# -- validators


def _prepared(validator: Any, schema: Any, resolver: Any) -> _Part:
    kind = type(validator)
    if resolver is None:
        resolver = validator._resolver.in_subresource(_specification(kind).create_resource(schema))  # noqa: SLF001
    inner = kind(schema, format_checker=validator.format_checker, _resolver=resolver)
    keywords = tuple((check, name, wanted, _steps_of(name, wanted)) for check, name, wanted in inner._validators)  # noqa: SLF001
    return _Part(inner, keywords)


def _specification(dialect: Any) -> Any:
    return specification_with(dialect.META_SCHEMA.get("$schema", ""), default=DRAFT202012)


def _steps_of(name: str, wanted: Any) -> int:
    """Return the steps of a keyword, without those of the parts and values that it is applied to."""
    if name in ("enum", "const"):
        return _KEYWORD
    listed = list(wanted.values()) if isinstance(wanted, Mapping) else wanted if isinstance(wanted, list) else []
    inner = sum(len(item) for item in listed if isinstance(item, list)) if name.startswith("depend") else 0
    return _KEYWORD + _LISTED * (len(listed) + inner)


def _descend(
    self: Any, instance: Any, schema: Any, path: Any = None, schema_path: Any = None, resolver: Any = None
) -> _Errors:
    """Apply one part, in as few levels of the stack as possible. No message has the path inside the schema."""
    del schema_path
    budget: _Budget = self.format_checker
    budget.spend(_PART)
    if schema is True:
        return
    if schema is False:
        yield ValidationError("is not allowed", validator=_NO_KEYWORD, validator_value=None, instance=instance)
        return
    inner, keywords = budget.part(self, schema, resolver)
    budget.enter(_DESCENDS)
    try:
        for check, name, wanted, steps in keywords:
            budget.spend(steps)
            if name in _UNEVALUATED_KEYWORDS:
                budget.spend_unevaluated(instance)
            for error in check(inner, wanted, instance, schema) or ():
                budget.spend(_ERROR)
                _complete(error, inner, name, wanted, instance)
                if path is not None:
                    error.path.appendleft(path)
                yield error
    finally:
        budget.leave(_DESCENDS)


def _complete(error: ValidationError, validator: Any, name: str, wanted: Any, instance: Any) -> None:
    """Note on a new error its keyword, as the library's own `descend` does, and count the text that it made."""
    if not isinstance(error.validator, str):
        validator.format_checker.spend(_ERROR_CHARACTER * len(error.message))
    mark: Any = error
    mark._set(  # noqa: SLF001 - no public name
        validator=name,
        validator_value=wanted,
        instance=instance,
        schema=validator.schema,
        type_checker=validator.TYPE_CHECKER,
    )


def _iter_errors(self: Any, instance: Any) -> _Errors:
    budget: _Budget = self.format_checker
    budget.enter(_JUDGES)
    try:
        yield from _descend(self, instance, self.schema, resolver=self._resolver)
    finally:
        budget.leave(_JUDGES)


def _evolve(self: Any, *, schema: Any, _resolver: Any = None) -> Any:
    if isinstance(schema, bool):
        return type(self)(schema, format_checker=self.format_checker, _resolver=self._resolver)
    return self.format_checker.part(self, schema, _resolver).validator


def _validate_reference(self: Any, ref: str, instance: Any) -> _Errors:
    found = self.format_checker.referred(self, ref)
    return _descend(self, instance, found.contents, resolver=found.resolver)


@lru_cache(maxsize=16)
def linear(dialect: Any) -> Any:
    """Return the validator class of a draft whose keywords take linear time, for schemas that are trusted."""
    ours = {name: keyword for name, keyword in _OURS.items() if name in dialect.VALIDATORS}
    return validators.extend(dialect, ours)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=16)
def _bounded(dialect: Any) -> Any:
    """Return the validator class of a draft whose work is counted."""
    kind = validators.extend(linear(dialect))  # type: ignore[no-untyped-call]
    kind.descend, kind.iter_errors, kind.evolve = _descend, _iter_errors, _evolve
    kind._validate_reference = _validate_reference  # noqa: SLF001 - no public name
    return kind


class BoundedSchema:
    """A JSON Schema, prepared to be applied to many values."""

    def __init__(self, dialect: Any, schema: Mapping[str, Any]) -> None:
        self.schema = dict(schema)
        self._budget = _Budget(_Facts.of(schema))
        kind = _bounded(dialect)
        resource = _specification(kind).create_resource(self.schema)
        uri = resource.id() or ""
        resolver = Registry().with_resource(uri, resource).crawl().resolver(uri)
        self._validator = kind(self.schema, format_checker=self._budget, _resolver=resolver)

    def errors(self, value: Any, most: int, work: Work) -> list[ValidationError]:
        """Return the first errors of a value, and take the steps from the work. Raises TooMuchWork and TooNested."""
        facts = self._budget.facts
        if facts.is_unevaluated and facts.in_place > MOST_IN_PLACE:
            raise TooNested
        steps = min(MOST_STEPS, work.left)
        self._budget.start(steps)
        found = []
        try:
            if work.meets(self.schema):
                self._budget.spend(_PREPARED_VALUE * facts.values + _PREPARED_OBJECT * facts.objects)
            for error in self._validator.iter_errors(value):
                found.append(error)
                if len(found) >= most:
                    break
        finally:
            work.drain(steps - self._budget.left)
            self._budget.forget()
        return found


_kept: OrderedDict[int, tuple[Mapping[str, Any], BoundedSchema]] = OrderedDict()


def bounded(dialect: Any, schema: Mapping[str, Any]) -> BoundedSchema:
    """Return the prepared schema; those used last are kept."""
    found = _kept.get(id(schema))
    if found is None or found[0] is not schema:
        found = _kept[id(schema)] = schema, BoundedSchema(dialect, schema)
        while len(_kept) > KEPT_SCHEMAS:
            _kept.popitem(last=False)
    _kept.move_to_end(id(schema))
    return found[1]
