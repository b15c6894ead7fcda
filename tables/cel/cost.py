"""The cost of judging an expression, counted before it is judged: iterations times bytes looked at or made.

The count is an upper bound that follows from the expression and the data alone, so every worker comes to the same. One
step is about ten nanoseconds and makes at most eight bytes, by measurement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ports.errors import CeremonyError
from tables.cel.reads import nodes_of
from tables.cel.tree import Call, Constant, Expr, Macro, MakeList, MakeMap, Name, Select, Static
from tables.patterns import call_cost, largest_pattern_weight, match_cost, pattern_weight
from tables.sizes import Size, size_of, text_bytes
from tables.work import Work, WorkSpent

# Steps of one judgement.
MAX_STEPS = 4_000_000

_NODE = 10
# The count looks at each node once, in Python.
_COUNTED_NODE = 130
_CONVERTED_VALUE, _CONVERTED_ENTRY, _CONVERTED_BYTES = 10, 25, 8
_COMPARED_VALUE, _COMPARED_BYTES = 13, 16
_VISITED = 15
_LISTED, _MAPPED = 4, 20
_JOINED_ELEMENT, _JOINED_BYTES = 4, 4
# `map` and `filter` copy their result at each element.
_COPIED = 2
_PARSED = 60
_SEARCHED_BYTES, _SEARCHED_SQUARE = 2, 500
# Bytes of a number as text.
_NUMBER = 32
_FIXED_ZONE = re.compile(r"UTC|[+-]?[0-9]{2}:[0-9]{2}")

_OVER_MAP = (
    "cel_over_map",
    "a macro (`all`, `exists`, `exists_one`, `map`, `filter`) walks over a map, which has no order",
)
_TIME_ZONE = (
    "cel_time_zone",
    "a time zone must be written as `UTC` or as an offset like '+02:00': names differ by machine",
)
_TOO_COSTLY = "cel_too_costly", f"judging it takes more than {MAX_STEPS} steps"


class NotJudged(CeremonyError):
    """An expression is not judged: `cel_over_map`, `cel_time_zone` or `cel_too_costly`."""


class Made(NamedTuple):
    """A list or map that the expression makes."""

    length: int
    items: Value
    is_map: bool = False


@dataclass(frozen=True, slots=True)
class Value:
    """Every form that the value of a node may have. A scalar has none of these."""

    text: int = 0
    """Most bytes of a text."""
    data: tuple[Any, ...] = ()
    """Lists and maps of the row."""
    made: tuple[Made, ...] = ()


_SCALAR = Value()


def broken_rules(tree: Expr) -> list[tuple[str, str]]:
    """List the rules (code, message) that an expression breaks whatever the data: it will never be judged."""
    found = []
    for node in nodes_of(tree):
        if isinstance(node, Macro) and node.walked.static is Static.MAP:
            found.append(_OVER_MAP)
        elif isinstance(node, Call) and _names_zone(node):
            found.append(_TIME_ZONE)
    return list(dict.fromkeys(found))


class Counted(NamedTuple):
    """The result of a count."""

    steps: int
    has_huge: bool
    """True where a variable holds a whole number of more than 64 bits."""


def counted(tree: Expr, variables: Mapping[str, Any], work: Work) -> Counted:
    """Count the steps of judging an expression on these variables, and take them from the work.

    Raises NotJudged, taking the steps of the count itself; and WorkSpent, taking all, where the work has too few left.
    """
    count = _Count(variables, min(MAX_STEPS, work.left))
    try:
        found = count.result(tree)
    except WorkSpent:
        work.drain(work.left)
        raise
    except NotJudged:
        work.drain(count.visited)
        raise
    work.spend(found.steps)
    return found


class _Count:
    """One count. `times` is the number of times that the present node runs."""

    def __init__(self, variables: Mapping[str, Any], most: int) -> None:
        self.visited = 0
        """Steps of the count itself."""
        self._most = most
        self._variables = variables
        self._names: dict[str, Value] = {}
        self._sizes: dict[int, Size] = {}
        self._steps = 0
        self._times = 1

    def result(self, tree: Expr) -> Counted:
        has_huge = False
        for value in self._variables.values():
            size = self._size(value)
            has_huge = has_huge or size.has_huge
            self._spend(_converted(size))
        self._of(tree)
        return Counted(self._steps + self.visited, has_huge)

    def _spend(self, steps: int) -> None:
        self._steps += steps * self._times
        if self._steps + self.visited > self._most:
            raise WorkSpent if self._most < MAX_STEPS else NotJudged(*_TOO_COSTLY)

    def _visit(self, values: int) -> None:
        """Count values that this count itself looks at, once whatever the loops."""
        self.visited += values * _VISITED
        self._spend(0)

    def _of(self, node: Expr) -> Value:
        self.visited += _COUNTED_NODE
        self._spend(_NODE)
        value = _COUNTERS[type(node)](self, node)
        if value.data:
            self._visit(len(value.data))
        return value

    def constant(self, node: Constant) -> Value:
        value = node.value
        if isinstance(value, str):
            return Value(text_bytes(value))
        return Value(len(value)) if isinstance(value, bytes) else _SCALAR

    def name(self, node: Name) -> Value:
        known = self._names.get(node.name)
        if known is not None:
            return known
        return _value(self._variables[node.name]) if node.name in self._variables else _SCALAR

    def select(self, node: Select) -> Value:
        operand = self._of(node.operand)
        return _SCALAR if node.only_tests else self._item(operand, node.key)

    def make_list(self, node: MakeList) -> Value:
        items = _joined([self._of(element) for element in node.elements])
        self._spend(_LISTED * len(node.elements))
        return Value(made=(Made(len(node.elements), items),))

    def make_map(self, node: MakeMap) -> Value:
        items = _joined([self._of(entry) for entry in node.entries])
        self._spend(_MAPPED * len(node.entries))
        return Value(made=(Made(len(node.entries), items, is_map=True),))

    def macro(self, node: Macro) -> Value:
        walked = self._of(node.walked)
        if any(isinstance(data, Mapping) for data in walked.data) or any(made.is_map for made in walked.made):
            raise NotJudged(*_OVER_MAP)
        length = _length(walked)
        total = self._of(node.first)
        names, times = self._names, self._times
        self._names = names | {node.variable: self._items(walked), node.total: total}
        self._times = times * length
        self._of(node.goes_on)
        step = self._of(node.step)
        if isinstance(node.first, MakeList):
            self._spend(_COPIED * length)
            total = Value(made=(Made(length, _joined([made.items for made in step.made])),))
        self._names = names | {node.total: total}
        self._times = times
        result = self._of(node.result)
        self._names = names
        return result

    def call(self, node: Call) -> Value:
        values = [self._of(argument) for argument in node.arguments]
        counter = _FUNCTIONS.get(node.function)
        if counter is not None:
            return counter(self, node, values)
        if node.function not in _PLAIN:
            raise NotJudged("cel_failed", "the expression has a function that this release does not know")
        return _SCALAR

    # -- functions

    def choose(self, _node: Call, values: list[Value]) -> Value:
        return _joined(values[1:])

    def same(self, _node: Call, values: list[Value]) -> Value:
        return values[0]

    def equals(self, _node: Call, values: list[Value]) -> Value:
        self._spend(min(map(self._weight, values)))
        return _SCALAR

    def within(self, _node: Call, values: list[Value]) -> Value:
        sought, holder = values
        self._spend(min(self._weight(holder), _length(holder) * (_COMPARED_VALUE + self._weight(sought))))
        return _SCALAR

    def index(self, node: Call, values: list[Value]) -> Value:
        key = node.arguments[1]
        found = self._item(values[0], key.value if isinstance(key, Constant) else None)
        self._spend(_length(found))  # the engine copies it
        return found

    def add(self, node: Call, values: list[Value]) -> Value:
        if node.static is Static.SCALAR:
            return _SCALAR
        length = sum(map(_length, values))
        text = sum(value.text for value in values)
        self._spend(_JOINED_ELEMENT * length + text // _JOINED_BYTES)
        made = () if not length else (Made(length, _joined(list(map(self._items, values)))),)
        return Value(text, made=made)

    def read_text(self, _node: Call, values: list[Value]) -> Value:
        """Count `size` and comparisons by order."""
        self._spend(sum(value.text for value in values) // _CONVERTED_BYTES)
        return _SCALAR

    def search(self, _node: Call, values: list[Value]) -> Value:
        text, sought = (value.text for value in values)
        self._spend(text // _SEARCHED_BYTES + text * sought // _SEARCHED_SQUARE)
        return _SCALAR

    def matches(self, node: Call, values: list[Value]) -> Value:
        written = node.arguments[1]
        pattern = written.value if isinstance(written, Constant) and isinstance(written.value, str) else None
        weight = largest_pattern_weight(values[1].text) if pattern is None else pattern_weight(pattern)
        self._spend(call_cost(pattern, weight) + match_cost(weight, values[0].text))
        return _SCALAR

    def convert(self, node: Call, values: list[Value]) -> Value:
        self._spend(_PARSED + values[0].text // _JOINED_BYTES)
        return Value(max(_NUMBER, values[0].text)) if node.static is Static.TEXT else _SCALAR

    def of_time(self, node: Call, _values: list[Value]) -> Value:
        if _names_zone(node):
            raise NotJudged(*_TIME_ZONE)
        self._spend(_PARSED * len(node.arguments))
        return _SCALAR

    # -- parts and sizes of values

    def _item(self, holder: Value, key: str | int | bytes | None) -> Value:
        """Return the items under a key; None for any key."""
        if key is None or holder.made:
            return self._items(holder)
        self._visit(len(holder.data))
        found = []
        for data in holder.data:
            if isinstance(data, Mapping):
                if key in data:
                    found.append(data[key])
            elif isinstance(key, int) and key < len(data):
                found.append(data[key])
        return _one_of(found)

    def _items(self, holder: Value) -> Value:
        """Return all items of the lists and maps that a value may be."""
        found: list[Any] = []
        for data in holder.data:
            self._visit(len(data))
            found += data.values() if isinstance(data, Mapping) else data
        return _joined([_one_of(found), *(made.items for made in holder.made)])

    def _weight(self, value: Value) -> int:
        """Return the steps of looking at all of a value."""
        weights = [_COMPARED_VALUE + value.text // _COMPARED_BYTES]
        weights += [_compared(self._size(data)) for data in value.data]
        weights += [(1 + made.length) * self._weight(made.items) for made in value.made]
        return max(weights)

    def _size(self, data: Any) -> Size:
        found = self._sizes.get(id(data))
        if found is None:
            found = self._sizes[id(data)] = size_of(data, self._most // _CONVERTED_VALUE)
            self._visit(found.values)
        return found


def _compared(size: Size) -> int:
    return size.values * _COMPARED_VALUE + size.text_bytes // _COMPARED_BYTES


def _converted(size: Size) -> int:
    return size.values * _CONVERTED_VALUE + size.entries * _CONVERTED_ENTRY + size.text_bytes // _CONVERTED_BYTES


def _value(data: Any) -> Value:
    if isinstance(data, Mapping | list):
        return Value(data=(data,))
    return Value(text_bytes(data)) if isinstance(data, str) else _SCALAR


def _one_of(items: list[Any]) -> Value:
    text = max((text_bytes(item) for item in items if isinstance(item, str)), default=0)
    return Value(text, tuple(item for item in items if isinstance(item, Mapping | list)))


def _joined(values: list[Value]) -> Value:
    if len(values) == 1:
        return values[0]
    text = max((value.text for value in values), default=0)
    data = {id(item): item for value in values for item in value.data}
    made = tuple(made for value in values for made in value.made)
    return Value(text, tuple(data.values()), _merged(made))


def _merged(made: tuple[Made, ...]) -> tuple[Made, ...]:
    """Return at most one list and one map: their number must not grow with each choice."""
    found = []
    for is_map in (False, True):
        alike = [one for one in made if one.is_map is is_map]
        if alike:
            items = alike[0].items if len(alike) == 1 else _joined([one.items for one in alike])
            found.append(Made(max(one.length for one in alike), items, is_map=is_map))
    return tuple(found)


def _length(value: Value) -> int:
    return max([0, *map(len, value.data), *(made.length for made in value.made)])


def _names_zone(node: Call) -> bool:
    """Return whether a function of time takes its zone from the data of the machine."""
    if not node.function.startswith("get") or len(node.arguments) == 1:
        return False
    zone = node.arguments[1]
    return not (isinstance(zone, Constant) and isinstance(zone.value, str) and _FIXED_ZONE.fullmatch(zone.value))


_COUNTERS: Mapping[type[Expr], Callable[[_Count, Any], Value]] = {
    Constant: _Count.constant,
    Name: _Count.name,
    Select: _Count.select,
    Call: _Count.call,
    MakeList: _Count.make_list,
    MakeMap: _Count.make_map,
    Macro: _Count.macro,
}
_FUNCTIONS: Mapping[str, Callable[[_Count, Call, list[Value]], Value]] = {
    "_?_:_": _Count.choose,
    "dyn": _Count.same,
    "_==_": _Count.equals,
    "_!=_": _Count.equals,
    "@in": _Count.within,
    "_[_]": _Count.index,
    "_+_": _Count.add,
    "size": _Count.read_text,
    "contains": _Count.search,
    "matches": _Count.matches,
    **dict.fromkeys(("_<_", "_<=_", "_>_", "_>=_", "startsWith", "endsWith"), _Count.read_text),
    **dict.fromkeys(
        ("bool", "bytes", "double", "duration", "int", "string", "timestamp", "type", "uint"), _Count.convert
    ),
    **dict.fromkeys(
        (
            "getDate",
            "getDayOfMonth",
            "getDayOfWeek",
            "getDayOfYear",
            "getFullYear",
            "getHours",
            "getMilliseconds",
            "getMinutes",
            "getMonth",
            "getSeconds",
        ),
        _Count.of_time,
    ),
}
# Functions of scalars alone.
_PLAIN = frozenset({"_&&_", "_||_", "!_", "@not_strictly_false", "-_", "_-_", "_*_", "_/_", "_%_"})
