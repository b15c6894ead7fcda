"""Reads YAML into nodes with lines, bounded against hostile size, depth and aliases.

It builds the nodes from the parser's events with its own stack: nothing here recurses, and an alias is refused before
anything could be expanded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from ports.errors import CeremonyError
from tables.definitions.problems import ProblemList, clipped

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
# A longer plain scalar is always text: no number of a definition needs more.
MAX_NUMBER_CHARACTERS = 64

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {"str", "int", "float", "bool", "null"}
_BROKEN = object()
_resolver: Any = Resolver()
_constructor = SafeConstructor()


@dataclass(slots=True, eq=False)
class Node:
    """One value of the file: scalar (`value`), list (`items`) or map (`entries`, and the lines of its keys)."""

    line: int
    kind: str
    """scalar, list, map, or broken: a scalar that is reported already."""
    value: str | int | float | bool | None = None
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)

    @property
    def is_null(self) -> bool:
        return self.kind == "scalar" and self.value is None

    def line_of(self, key: str) -> int:
        """Return the line of a key of a map, or of the map where it has no such key."""
        return self.key_lines.get(key, self.line)

    def plain(self) -> Any:
        """Return the value as JSON-able Python data. Recursion is safe: no node is deeper than MAX_DEPTH."""
        if self.kind == "list":
            return [item.plain() for item in self.items]
        if self.kind == "map":
            return {key: node.plain() for key, node in self.entries.items()}
        return self.value

    def count(self) -> int:
        """Return the number of values, this one included."""
        return 1 + sum(item.count() for item in self.items) + sum(node.count() for node in self.entries.values())

    def line_at(self, path: Iterator[str | int]) -> int:
        """Return the line at `path`, or of the last existing part of it."""
        node, line = self, self.line
        for part in path:
            if node.kind == "map" and str(part) in node.entries:
                line = node.line_of(str(part))
                node = node.entries[str(part)]
            elif node.kind == "list" and str(part).isdecimal() and int(part) < len(node.items):
                node = node.items[int(part)]
                line = node.line
        return line


def read_text(source: str | bytes, report: ProblemList) -> str | None:
    """Return the file's text, or None after reporting a problem."""
    if len(source) > MAX_BYTES or (isinstance(source, str) and len(source.encode("utf-8", "replace")) > MAX_BYTES):
        report.add(1, "file_too_large", f"a definition has at most {MAX_BYTES // 1024} KiB")
        return None
    try:
        text = source.decode("utf-8") if isinstance(source, bytes) else source
        text.encode("utf-8")
    except UnicodeError:
        report.add(1, "not_utf8", "the file is not UTF-8 text; save it as UTF-8")
        return None
    return text


def parse(text: str, report: ProblemList) -> Node | None:
    """Return the root node of the one document in `text`; None where the text is no YAML."""
    try:
        return _Builder(report).build(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        report.add(line, "yaml_syntax", f"not valid YAML: {clipped(error.problem or 'malformed')}")
    except (yaml.YAMLError, UnicodeError, ValueError):
        report.add(1, "yaml_syntax", "not valid YAML: it holds characters that YAML does not allow")
    return None


class _Stop(CeremonyError):
    """The file is refused as a whole; the code is that of the rule it breaks."""

    def __init__(self, event: yaml.Event, rule: str, message: str) -> None:
        self.line = _line(event)
        super().__init__(rule, message, place=f"line {self.line}")


class _Builder:
    def __init__(self, report: ProblemList) -> None:
        self.report = report
        self.stack: list[Node] = []
        self.keys: list[str | None] = []
        """Per open collection: the key whose value is awaited (maps), else None."""
        self.key_line: list[int] = []
        self.root: Node | None = None
        self.documents = 0

    def build(self, text: str) -> Node | None:
        try:
            for event in yaml.parse(text, Loader=_Parser):
                self._take(event)
        except _Stop as stop:
            self.report.add(stop.line, stop.code, stop.message)
            return None
        return self.root

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise _Stop(event, "several_documents", "a file holds one definition; remove the `---`")
        elif isinstance(event, yaml.AliasEvent):
            anchor = clipped(event.anchor)
            raise _Stop(event, "yaml_alias", f"aliases are not allowed; write out what `*{anchor}` means")
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.stack.pop()
            self.keys.pop()
            self.key_line.pop()

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        kind = "map" if isinstance(event, yaml.MappingStartEvent) else "list"
        if len(self.stack) >= MAX_DEPTH:
            raise _Stop(event, "nesting_too_deep", f"at most {MAX_DEPTH} lists and maps may be nested")
        if event.tag is not None and event.tag not in (_PREFIX + ("map" if kind == "map" else "seq"), "!"):
            self.report.add(_line(event), "yaml_tag", f"the tag {clipped(event.tag)} is not allowed; remove it")
        if self.stack and self.stack[-1].kind == "map" and self.keys[-1] is None:
            raise _Stop(event, "bad_key", "a key is a plain text, not a list or a map")
        node = Node(_line(event), kind)
        self._put(node)
        self.stack.append(node)
        self.keys.append(None)
        self.key_line.append(0)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        line = _line(event)
        if self.stack and self.stack[-1].kind == "map" and self.keys[-1] is None:
            self.keys[-1], self.key_line[-1] = event.value, line
            if _has_surrogate(event.value):
                raise _Stop(event, "not_utf8", "a key holds a lone surrogate, which is no character")
            return
        value = self._value(event, line)
        self._put(Node(line, "broken") if value is _BROKEN else Node(line, "scalar", value))

    def _value(self, event: yaml.ScalarEvent, line: int) -> Any:
        if _has_surrogate(event.value):
            self.report.add(line, "not_utf8", "a text holds a lone surrogate, which is no character")
            return _BROKEN
        tag = event.tag
        if tag in (None, "!"):
            short = len(event.value) <= MAX_NUMBER_CHARACTERS
            plain = event.implicit[0] and tag is None
            tag = _resolver.resolve(yaml.ScalarNode, event.value, (True, False)) if plain and short else _PREFIX + "str"
            if tag.removeprefix(_PREFIX) not in _SCALARS:
                tag = _PREFIX + "str"  # a date, `<<` or `=` is plain text to its author
        elif tag.removeprefix(_PREFIX) not in _SCALARS:
            self.report.add(line, "yaml_tag", f"the tag {clipped(tag)} is not allowed; remove it")
            return str(event.value)
        return self._constructed(tag, event, line)

    def _constructed(self, tag: str, event: yaml.ScalarEvent, line: int) -> Any:
        if tag == _PREFIX + "str":
            return str(event.value)
        try:
            node = yaml.ScalarNode(tag, event.value)
            value: Any = SafeConstructor.yaml_constructors[tag](_constructor, node)
        except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
            self.report.add(
                line, "bad_value", f"{clipped(event.value)} is not {_type_in_words(tag)}; quote it if it is text"
            )
            return _BROKEN
        if isinstance(value, float) and value - value != 0:
            self.report.add(line, "bad_number", "a number is finite; NaN and infinity are not allowed")
            return _BROKEN
        if isinstance(value, int) and abs(value) >= 2**63:
            self.report.add(line, "bad_number", "a whole number fits in 64 bits; quote it if it is text")
            return _BROKEN
        return value

    def _put(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        if parent.kind == "list":
            parent.items.append(node)
            return
        key, line = self.keys[-1] or "", self.key_line[-1]
        self.keys[-1] = None
        if key in parent.entries:
            first = parent.key_lines[key]
            self.report.add(line, "duplicate_key", f"`{clipped(key)}` stands in line {first} already; keep one of them")
            return
        parent.entries[key] = node
        parent.key_lines[key] = line


def _line(event: yaml.Event) -> int:
    """1-based line where the event begins."""
    return event.start_mark.line + 1 if event.start_mark else 1


def _type_in_words(tag: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "null": "null"}
    return words.get(tag.removeprefix(_PREFIX), "text")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text) if not text.isascii() else False
