"""Shapes of a definition file: each reads a YAML node, reports mistakes, and has a JSON Schema.

Reader and published schema come from the same declaration, so they cannot drift apart. A wrong value is reported and
read as None, so that all other rules can still be checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tables.definitions.problems import ProblemList, clipped, listed
from tables.definitions.yaml_source import Node


class Shape(Protocol):
    """The shape of one value."""

    def read(self, node: Node, where: str, report: ProblemList) -> Any:
        """Return the value, or None where it is wrong and reported."""

    def schema(self) -> dict[str, Any]:
        """Return the shape as JSON Schema."""


def wrong_type(node: Node, where: str, wanted: str, report: ProblemList) -> None:
    if node.kind == "broken" or node.ambiguous:
        return  # reported by the reader of the YAML
    if node.is_null:
        report.add(node.line, "null_value", f"{where} is null: give {wanted}, or leave the key out")
        return
    report.add(node.line, "wrong_type", f"{where} must be {wanted}, not {_said(node)}")


def _said(node: Node) -> str:
    if node.kind != "scalar":
        return f"a {node.kind}"
    if isinstance(node.value, bool):
        return "a boolean"
    if isinstance(node.value, str):
        return "text"
    return "a number"


@dataclass(frozen=True, slots=True)
class Text:
    """Non-empty text, restricted to a pattern or to a few words where they are given."""

    pattern: str = ""
    in_words: str = ""
    """The pattern in words."""
    rule: str = "bad_name"
    words: tuple[str, ...] = ()

    def read(self, node: Node, where: str, report: ProblemList) -> str | None:
        if not isinstance(node.value, str):
            hint = " (quote it)" if node.kind == "scalar" and not node.is_null else ""
            wrong_type(node, where, "text" + hint, report)
            return None
        if not node.value.strip():
            report.add(node.line, "empty_value", f"{where} is empty: write something")
            return None
        if self.words and node.value not in self.words:
            hint = report.suggest(node.value, self.words)
            report.add(node.line, self.rule, f"{where} is `{clipped(node.value)}`, no word known here{hint}")
            return None
        if self.pattern and not re.fullmatch(self.pattern, node.value):
            report.add(node.line, self.rule, f"{where} is `{clipped(node.value)}`, but must be {self.in_words}")
            return None
        return node.value

    def schema(self) -> dict[str, Any]:
        if self.words:
            return {"enum": list(self.words)}
        return {"type": "string", "pattern": f"^(?:{self.pattern})$" if self.pattern else r"\S"}


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number; never a boolean."""

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    whole: bool = False

    def read(self, node: Node, where: str, report: ProblemList) -> float | None:
        value = node.value
        wanted = "a whole number" if self.whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.whole and not isinstance(value, int)):
            wrong_type(node, where, wanted, report)
            return None
        low = (self.minimum is not None and value < self.minimum) or (self.above is not None and value <= self.above)
        if low or (self.maximum is not None and value > self.maximum):
            report.add(node.line, "out_of_range", f"{where} is {value}, but must be {self._range()}")
            return None
        return value

    def _range(self) -> str:
        parts = [f"≥ {self.minimum:g}"] if self.minimum is not None else []
        parts += [f"> {self.above:g}"] if self.above is not None else []
        parts += [f"≤ {self.maximum:,.15g}"] if self.maximum is not None else []
        return " and ".join(parts)

    def schema(self) -> dict[str, Any]:
        bounds = {"minimum": self.minimum, "exclusiveMinimum": self.above, "maximum": self.maximum}
        given = {key: bound for key, bound in bounds.items() if bound is not None}
        return {"type": "integer" if self.whole else "number"} | given


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def read(self, node: Node, where: str, report: ProblemList) -> bool | None:
        if isinstance(node.value, bool):
            return node.value
        wrong_type(node, where, "true or false", report)
        return None

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class FreeMap:
    """A map that is judged elsewhere; read as its node."""

    non_empty: bool = False

    def read(self, node: Node, where: str, report: ProblemList) -> Node | None:
        if node.kind != "map":
            wrong_type(node, where, "a map", report)
            return None
        if self.non_empty and not node.entries:
            report.add(node.line, "empty_value", f"{where} is empty: give at least one key")
            return None
        return node

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "minProperties": 1} if self.non_empty else {"type": "object"}


@dataclass(frozen=True, slots=True)
class Item:
    """One element of a list or map, with its line."""

    line: int
    value: Any
    """None where it is wrong."""
    node: Node


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list; read as Items, wrong ones included with value None."""

    of: Shape
    non_empty: bool = False

    def read(self, node: Node, where: str, report: ProblemList) -> tuple[Item, ...] | None:
        if node.kind != "list":
            wrong_type(node, where, "a list", report)
            return None
        if self.non_empty and not node.items:
            report.add(node.line, "empty_value", f"{where} is empty: give at least one")
        return tuple(
            Item(item.line, self.of.read(item, f"{where}[{index}]", report), item)
            for index, item in enumerate(node.items)
        )

    def schema(self) -> dict[str, Any]:
        found = {"type": "array", "items": self.of.schema()}
        return found | {"minItems": 1} if self.non_empty else found


@dataclass(frozen=True, slots=True)
class MapOf:
    """A map from names to one shape; read as name → Item."""

    of: Shape
    pattern: str = ""
    in_words: str = ""

    def read(self, node: Node, where: str, report: ProblemList) -> dict[str, Item] | None:
        if node.kind != "map":
            wrong_type(node, where, "a map", report)
            return None
        found: dict[str, Item] = {}
        for name, entry in node.entries.items():
            line = node.line_of(name)
            if not name.strip():
                report.add(line, "bad_name", f"a name in {where} is empty")
                continue
            if self.pattern and not re.fullmatch(self.pattern, name):
                report.add(line, "bad_name", f"`{clipped(name)}` in {where} must be {self.in_words}")
            found[name] = Item(line, self.of.read(entry, f"{where}.{clipped(name)}", report), entry)
        return found

    def schema(self) -> dict[str, Any]:
        names = f"^(?:{self.pattern})$" if self.pattern else r"\S"
        return {"type": "object", "propertyNames": {"pattern": names}, "additionalProperties": self.of.schema()}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a record."""

    shape: Shape
    doc: str
    required: bool = False
    default: Any = None
    """Written in the schema only; the reader of the record fills it in."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A record as read: its correct values, and the lines of all its keys."""

    node: Node
    values: Mapping[str, Any]

    @property
    def line(self) -> int:
        return self.node.line

    def get(self, key: str, default: Any = None) -> Any:
        found = self.values.get(key)
        return default if found is None else found

    def text(self, key: str) -> str:
        """Return the text as written, correct or not, by which other sections refer to it; "" where there is none."""
        node = self.node.entries.get(key)
        return node.value if node is not None and isinstance(node.value, str) else ""

    def has(self, key: str) -> bool:
        """Return whether the key is present in the file, correct or not."""
        return key in self.node.entries

    def line_of(self, key: str) -> int:
        return self.node.line_of(key)


def _is_merge(name: str, value: Node) -> bool:
    """Return whether an entry is `<<: *alias`, which is reported as an alias."""
    return name == "<<" and value.kind == "broken"


@dataclass(frozen=True, slots=True)
class FixedMap:
    """A map with fixed keys; unknown and missing ones are reported."""

    keys: Mapping[str, Key]
    title: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """More JSON Schema, for people's editors."""

    def read(self, node: Node, where: str, report: ProblemList) -> Fields | None:
        if node.kind != "map":
            wrong_type(node, where or "a definition", f"a map with {listed(self.keys)}", report)
            return None
        prefix = f"{where}." if where else ""
        for name in node.entries:
            if name not in self.keys and not _is_merge(name, node.entries[name]):
                unused = [key for key in self.keys if key not in node.entries]
                hint = report.suggest(name, unused or self.keys)
                report.add(node.line_of(name), "unknown_key", f"unknown key `{prefix}{clipped(name)}`{hint}")
        for name, key in self.keys.items():
            if key.required and name not in node.entries:
                report.add(node.line, "missing_key", f"{where or 'the definition'} needs `{name}`: {key.doc}")
        values = {
            name: key.shape.read(node.entries[name], prefix + name, report)
            for name, key in self.keys.items()
            if name in node.entries
        }
        return Fields(node, values)

    def schema(self) -> dict[str, Any]:
        properties = {}
        for name, key in self.keys.items():
            properties[name] = key.shape.schema() | {"description": key.doc}
            if key.default is not None:
                properties[name]["default"] = key.default
        found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
        required = [name for name, key in self.keys.items() if key.required]
        if required:
            found["required"] = required
        return found | ({"title": self.title} if self.title else {}) | self.extra


@dataclass(frozen=True, slots=True)
class TextOr:
    """Text, or else another shape (a retry policy by name or inline)."""

    text: Text
    other: Shape

    def read(self, node: Node, where: str, report: ProblemList) -> Any:
        return (self.text if isinstance(node.value, str) else self.other).read(node, where, report)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.text.schema(), self.other.schema()]}
