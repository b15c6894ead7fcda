"""A search for spans of bytes: one pass of RE2 tells whether there is any, and only then the spans are looked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import re2  # type: ignore[import-untyped]

# Memory of the automaton of all rules together; RE2 builds its states as texts need them, and begins anew when full.
AUTOMATON_BYTES = 64 * 1024 * 1024


class FoundSpan(NamedTuple):
    """A part of a text that must not leave."""

    start: int
    end: int
    rule: str


class Search(Protocol):
    def hits(self, text: bytes) -> bool:
        """Return whether the text may hold spans: never False where it does, also as a part of a longer text."""

    def spans(self, text: bytes) -> Iterable[FoundSpan]:
        """Yield the spans, in any order; they may overlap."""


def options(*, captures: bool = True) -> Any:
    """Options of RE2 for bytes: UTF-8 is read byte by byte, so no text can be malformed."""
    made = re2.Options()
    made.encoding = re2.Options.Encoding.LATIN1
    made.max_mem = AUTOMATON_BYTES
    made.log_errors = False
    made.never_capture = not captures
    return made


def pattern_set(patterns: Iterable[bytes]) -> Any:
    made = re2.Set.SearchSet(options(captures=False))
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made


class SecretRule(NamedTuple):
    """One kind of secret."""

    name: str
    """Stable: it stands in `[redacted:<name>]` and in errors."""
    pattern: bytes
    """RE2, on bytes. Group 1 is the secret, without quotes. It may not depend on the begin or the end of the text,
    except by `\\b` and by `$` beside the bytes that JSON puts behind a text."""
    least_entropy: float = 0.0
    """Bits per byte of the secret, at least; 0: its form alone tells."""
    unless: bytes = b""
    """RE2: a secret that it matches is none; empty: always one."""


class RuleSearch:
    """Searches for the secrets of rules."""

    def __init__(self, rules: Sequence[SecretRule]) -> None:
        self._rules = tuple(rules)
        self._set = pattern_set(rule.pattern for rule in rules)
        self._patterns = [re2.compile(rule.pattern, options()) for rule in rules]
        self._unless = [re2.compile(rule.unless, options()) if rule.unless else None for rule in rules]
        self.looked_at = 0
        """Bytes given to RE2 so far, each pattern counted: the measure of time of the tests."""

    def hits(self, text: bytes) -> bool:
        self.looked_at += len(text)
        return self._set.Match(text) is not None

    def spans(self, text: bytes) -> Iterator[FoundSpan]:
        self.looked_at += len(text)
        for number in self._set.Match(text) or ():
            self.looked_at += len(text)
            for match in self._patterns[number].finditer(text):
                start, end = match.span(1)
                if self._is_secret(number, text[start:end]):
                    yield FoundSpan(start, end, self._rules[number].name)

    def _is_secret(self, number: int, found: bytes) -> bool:
        unless = self._unless[number]
        return entropy(found) >= self._rules[number].least_entropy and (unless is None or not unless.search(found))


def entropy(text: bytes) -> float:
    """Return Shannon's entropy in bits per byte."""
    size = len(text)
    return -sum(count / size * math.log2(count / size) for count in Counter(text).values())
