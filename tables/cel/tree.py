"""The syntax tree of a compiled CEL expression, read from the engine's serialised form (cel.expr.CheckedExpr).

The numbers are those of the fields in google/cel-spec: checked.proto and syntax.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cel_expr_python import cel
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from ports.errors import CeremonyError


class Static(Enum):
    """The type of a node as far as the compiler knows it."""

    DYNAMIC = "dynamic"
    SCALAR = "scalar"
    TEXT = "text"
    LIST = "list"
    MAP = "map"


@dataclass(frozen=True, slots=True)
class Expr:
    """One node of a tree."""

    static: Static


@dataclass(frozen=True, slots=True)
class Constant(Expr):
    value: Any
    """A string, bytes, a whole number that is no negative one, or None for every other constant."""


@dataclass(frozen=True, slots=True)
class Name(Expr):
    name: str


@dataclass(frozen=True, slots=True)
class Select(Expr):
    operand: Expr
    key: str
    only_tests: bool
    """True for `has(…)`."""


@dataclass(frozen=True, slots=True)
class Call(Expr):
    function: str
    arguments: tuple[Expr, ...]
    """With the target of a method first."""


@dataclass(frozen=True, slots=True)
class MakeList(Expr):
    elements: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class MakeMap(Expr):
    """A map or a message."""

    entries: tuple[Expr, ...]
    """Keys and values."""


@dataclass(frozen=True, slots=True)
class Macro(Expr):
    """The loop of `all`, `exists`, `exists_one`, `map` or `filter`."""

    variable: str
    walked: Expr
    total: str
    """Name of the variable that gathers the result."""
    first: Expr
    """The value of `total` before the first element."""
    goes_on: Expr
    step: Expr
    result: Expr


_CHECKED_EXPR = 2  # of google.protobuf.Any
_TYPES, _EXPR = 3, 4
_ID, _CONSTANT, _NAME, _SELECT, _CALL, _LIST, _STRUCT, _MACRO = range(2, 10)
_INT, _STRING, _BYTES = 3, 6, 7
_ENTRY_KEYS_AND_VALUE = (3, 4)
# Fields of cel.expr.Type, and the primitive types that hold text.
_PRIMITIVE, _LIST_TYPE, _MAP_TYPE = 3, 6, 7
_DYNAMIC_TYPES = frozenset({1, 9, 11, 13})  # dyn, message, type parameter, error
_TEXT_TYPES = frozenset({5, 6})

_Fields = dict[int, list[Any]]


def tree_of(program: cel.Expression) -> Expr:
    """Return the syntax tree of a compiled expression. Its depth is bounded, for the parser's recursion is."""
    checked = _fields(_fields(program.serialize())[_CHECKED_EXPR][0])
    types = {}
    for entry in checked.get(_TYPES, ()):
        pair = _fields(entry)
        types[pair[1][0]] = _static(_fields(pair[2][0]))
    return _node(_fields(checked[_EXPR][0]), types)


def _fields(message: bytes) -> _Fields:
    """Return the fields of an encoded message by number."""
    empty = Empty()
    empty.MergeFromString(message)
    found: _Fields = {}
    unknown = UnknownFieldSet(empty)
    for index in range(len(unknown)):
        field = unknown[index]
        found.setdefault(field.field_number, []).append(field.data)
    return found


def _static(kind: _Fields) -> Static:
    if _MAP_TYPE in kind:
        return Static.MAP
    if _LIST_TYPE in kind:
        return Static.LIST
    if _PRIMITIVE in kind:
        return Static.TEXT if kind[_PRIMITIVE][0] in _TEXT_TYPES else Static.SCALAR
    return Static.DYNAMIC if not _DYNAMIC_TYPES.isdisjoint(kind) else Static.SCALAR


def _node(expr: _Fields, types: Mapping[int, Static]) -> Expr:
    static = types.get(expr.get(_ID, [0])[0], Static.DYNAMIC)
    for number, read in _READERS.items():
        if number in expr:
            return read(_fields(expr[number][0]), static, types)
    raise CeremonyError("bad_expression", "the expression has a node that this release does not know")


def _nodes(messages: list[bytes], types: Mapping[int, Static]) -> tuple[Expr, ...]:
    return tuple(_node(_fields(message), types) for message in messages)


def _text(fields: _Fields, number: int) -> str:
    return str(fields.get(number, [b""])[0].decode())


def _constant(fields: _Fields, static: Static, _types: Mapping[int, Static]) -> Expr:
    if _STRING in fields:
        return Constant(static, fields[_STRING][0].decode())
    number = fields.get(_INT, [None])[0]
    return Constant(static, fields[_BYTES][0] if _BYTES in fields else number)


def _name(fields: _Fields, static: Static, _types: Mapping[int, Static]) -> Expr:
    return Name(static, _text(fields, 1))


def _select(fields: _Fields, static: Static, types: Mapping[int, Static]) -> Expr:
    return Select(static, _nodes(fields[1], types)[0], _text(fields, 2), bool(fields.get(3, [0])[0]))


def _call(fields: _Fields, static: Static, types: Mapping[int, Static]) -> Expr:
    return Call(static, _text(fields, 2), _nodes(fields.get(1, []) + fields.get(3, []), types))


def _list(fields: _Fields, static: Static, types: Mapping[int, Static]) -> Expr:
    return MakeList(static, _nodes(fields.get(1, []), types))


def _struct(fields: _Fields, static: Static, types: Mapping[int, Static]) -> Expr:
    entries: list[bytes] = []
    for entry in map(_fields, fields.get(2, [])):
        for number in _ENTRY_KEYS_AND_VALUE:
            entries += entry.get(number, [])
    return MakeMap(static, _nodes(entries, types))


def _macro(fields: _Fields, static: Static, types: Mapping[int, Static]) -> Expr:
    walked, first, goes_on, step, result = (_nodes(fields[number], types)[0] for number in (2, 4, 5, 6, 7))
    return Macro(static, _text(fields, 1), walked, _text(fields, 3), first, goes_on, step, result)


_READERS = {
    _CONSTANT: _constant,
    _NAME: _name,
    _SELECT: _select,
    _CALL: _call,
    _LIST: _list,
    _STRUCT: _struct,
    _MACRO: _macro,
}
