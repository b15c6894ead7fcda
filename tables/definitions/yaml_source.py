"""Reads YAML into nodes with lines, bounded against hostile size, depth and aliases.

It builds the nodes from the parser's events with its own stack: nothing here recurses, and an alias is refused before
anything could be expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from tables.definitions.problems import ProblemList, clipped

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
# Values of a file, of all collections. Loading takes some ten microseconds for each, and a partition waits meanwhile.
MAX_VALUES = 25_000
# A longer plain scalar is always text: no number of a definition needs more.
MAX_NUMBER_CHARACTERS = 64

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {"str", "int", "float", "bool", "null"}
_BROKEN = object()
_SURROGATE = re.compile("[\ud800-\udfff]")
# In place of a key that is no text; its value is dropped.
_NO_KEY = "\0"
# Plain scalars of YAML 1.2 (core schema) that are no text. Where YAML 1.1, by which files are read, sees another value,
# the file means one thing to its author and another to the engine.
_BOOL_12 = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT_12 = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT_12 = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_resolver: Any = Resolver()
_constructor = SafeConstructor()


@dataclass(slots=True, eq=False)
class Node:
    """One value of the file: scalar (`value`), list (`items`) or map (`entries`, and the lines of its keys)."""

    line: int
    kind: str
    """scalar, list, map, or broken: a value that is reported already."""
    value: str | int | float | bool | None = None
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)
    ambiguous: bool = False
    """True for a scalar that YAML 1.1 and 1.2 read differently, which is reported already."""

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

    def holds_broken(self) -> bool:
        """Return whether something in it is broken, and so reported already."""
        inside = (*self.items, *self.entries.values())
        return self.kind == "broken" or any(node.holds_broken() for node in inside)

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


class _Builder:
    """Builds the nodes from events. A mistake is reported, and what it spoils is left out; the rest is read on."""

    def __init__(self, report: ProblemList) -> None:
        self.report = report
        self.stack: list[Node] = []
        self.keys: list[str | None] = []
        """Per open collection: the key whose value is awaited (maps), else None."""
        self.key_line: list[int] = []
        self.root: Node | None = None
        self.values = 0
        self.skipped = 0
        """Open collections that are not read: inside of a key, or nested too deep."""

    def build(self, text: str) -> Node | None:
        documents = 0
        for event in yaml.parse(text, Loader=_Parser):
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                self.report.add(_line(event), "several_documents", "a file holds one definition; remove the `---`")
                break
            if self.skipped:
                self._skip(event)
            else:
                self._take(event)
        return self.root

    def _skip(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.CollectionStartEvent):
            self.skipped += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            self.skipped -= 1

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            anchor = clipped(event.anchor)
            self.report.add(_line(event), "yaml_alias", f"aliases are not allowed; write out what `*{anchor}` means")
            self._put_or_key(Node(_line(event), "broken"))
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.stack.pop()
            self.keys.pop()
            self.key_line.pop()

    @property
    def _awaits_key(self) -> bool:
        return bool(self.stack) and self.stack[-1].kind == "map" and self.keys[-1] is None

    def _put_or_key(self, node: Node) -> None:
        """Put a broken node, or let it stand for a key that cannot be read."""
        if self._awaits_key:
            self.keys[-1], self.key_line[-1] = _NO_KEY, node.line
        else:
            self._put(node)

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        kind = "map" if isinstance(event, yaml.MappingStartEvent) else "list"
        line = _line(event)
        if event.tag is not None and event.tag not in (_PREFIX + ("map" if kind == "map" else "seq"), "!"):
            self.report.add(line, "yaml_tag", f"the tag {clipped(event.tag)} is not allowed; remove it")
        deep = len(self.stack) >= MAX_DEPTH
        if deep or self._awaits_key:
            rule, message = _TOO_DEEP if deep else _KEY_IS_TEXT
            self.report.add(line, rule, message)
            self._put_or_key(Node(line, "broken"))
            self.skipped = 1
            return
        node = Node(line, kind)
        self._put(node)
        self.stack.append(node)
        self.keys.append(None)
        self.key_line.append(0)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        line = _line(event)
        if self._awaits_key:
            self.keys[-1], self.key_line[-1] = event.value, line
            if _has_surrogate(event.value):
                self.report.add(line, "not_utf8", "a key holds a lone surrogate, which is no character")
                self.keys[-1] = _NO_KEY
            return
        value = self._value(event, line)
        if value is _BROKEN:
            self._put(Node(line, "broken"))
            return
        plain = event.implicit[0] and event.tag is None
        node = Node(line, "scalar", value, ambiguous=plain and _differs(event.value, value))
        if node.ambiguous:
            message = f"`{clipped(event.value)}` is {_shown(value)} in YAML 1.1: quote it, or write that"
            self.report.add(line, "quote_it", message)
        self._put(node)

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
        self.values += 1
        if self.values == MAX_VALUES + 1:
            self.report.add(node.line, "too_many_values", f"a definition holds at most {MAX_VALUES} values")
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        if parent.kind == "list":
            parent.items.append(node)
            return
        key, line = self.keys[-1] or "", self.key_line[-1]
        self.keys[-1] = None
        if key == _NO_KEY:
            return
        if key in parent.entries:
            first = parent.key_lines[key]
            self.report.add(line, "duplicate_key", f"`{clipped(key)}` stands in line {first} already; keep one of them")
            return
        parent.entries[key] = node
        parent.key_lines[key] = line


_TOO_DEEP = ("nesting_too_deep", f"at most {MAX_DEPTH} lists and maps may be nested")
_KEY_IS_TEXT = ("bad_key", "a key is a plain text, not a list or a map")


def _differs(text: str, value: Any) -> bool:
    """Return whether YAML 1.2 gives a plain scalar another type or value than `value`, that of YAML 1.1."""
    if text in _BOOL_12:
        return value is not _BOOL_12[text]
    if _INT_12.fullmatch(text):
        if len(text) > MAX_NUMBER_CHARACTERS:
            return True
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return type(value) is not int or value != int(text, base)
    if _FLOAT_12.fullmatch(text):
        return type(value) is not float or value != float(text)
    return value is not None and not isinstance(value, str)


def _shown(value: Any) -> str:
    """Return a value as YAML 1.1 reads it, in words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a text" if isinstance(value, str) else f"the number {value}"


def _line(event: yaml.Event) -> int:
    """1-based line where the event begins."""
    return event.start_mark.line + 1 if event.start_mark else 1


def _type_in_words(tag: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "null": "null"}
    return words.get(tag.removeprefix(_PREFIX), "text")


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and _SURROGATE.search(text) is not None
