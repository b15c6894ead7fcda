"""Replaces secrets and raw prompts by `[redacted:<rule>]`, in texts and in JSON values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

import msgspec

from ports.redaction import Detection, Redacted
from steps.secrets.prompts import KnownPrompts, PromptSearch, searchable
from steps.secrets.readings import plain_readings, readings
from steps.secrets.rules import RULES
from steps.secrets.search import FoundSpan, RuleSearch, Search

# Rounds in which a text is searched again after replacing; a text that is still not clean is replaced as a whole.
ROUNDS = 4
# Sets of prompts whose search is kept: a search of 20 KiB of prompts takes some milliseconds to make.
SEARCHES_KEPT = 512
# Rule of a value that nests too deep to be looked at and may hold a secret.
TOO_DEEP = "nested_too_deep"
# Levels of a value at which objects and lists are looked at as a whole first; below, each text is looked at.
LEVELS_AS_A_WHOLE = 8
# Characters of a key in a path.
LONGEST_KEY = 64
_MARKER = re.compile(rb"\[redacted:[a-z0-9_]+\]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_CONTAINERS = ("{", "[")
_encode = msgspec.json.Encoder().encode


class TextRedactor:
    """Implements `ports.redaction.Redactor`."""

    def __init__(self, secrets: Search | None = None, prompts: Search | None = None) -> None:
        self._secrets = secrets or _search_of_rules()
        self._searches: tuple[Search, ...] = (self._secrets,) if prompts is None else (self._secrets, prompts)
        self._of = lru_cache(maxsize=SEARCHES_KEPT)(self._with)
        self._known = KnownPrompts()

    def learn(self, prompts: tuple[str, ...]) -> None:
        if self._known.learn(prompts):
            self._searches = (self._secrets, *self._known.searches)

    def of(self, prompts: tuple[str, ...]) -> TextRedactor:
        return self._of(prompts) if prompts else self

    def _with(self, prompts: tuple[str, ...]) -> TextRedactor:
        parts = searchable(prompts)
        return TextRedactor(self._secrets, PromptSearch(parts)) if parts else self

    def suspicious(self, data: bytes, *, json: bool = True) -> bool:
        return self._hits(plain_readings(data, json=json))

    def text(self, text: str) -> str:
        if not self.suspicious(text.encode(errors="surrogatepass"), json=False):
            return text
        return self._text(text, "$", "", [])

    def data(self, data: bytes) -> bytes:
        if not self.suspicious(data, json=False):
            return data
        redacted = self._text(data.decode(errors="surrogateescape"), "$", "", [])
        return redacted.encode(errors="surrogateescape")

    def redact(self, value: Any) -> Redacted:
        if self._is_clean(value):
            return Redacted(value, ())
        findings: list[Detection] = []
        try:
            redacted = self._value(value, "$", "", findings)
        except RecursionError:
            return Redacted(f"[redacted:{TOO_DEEP}]", (Detection("$", TOO_DEEP),))
        return Redacted(redacted if findings else value, tuple(findings))

    def encoded(self, data: bytes) -> tuple[Any, Sequence[str]] | None:
        if not self.suspicious(data):
            return None
        findings: list[Detection] = []
        try:
            redacted = self._value(json.loads(data), "$", "", findings)
        except RecursionError:  # redacted as one text, which keeps it JSON
            return msgspec.json.decode(self.data(data)), ["$"]
        return (redacted, [finding.path for finding in findings]) if findings else None

    def _hits(self, texts: Iterable[bytes]) -> bool:
        return any(search.hits(text) for text in texts for search in self._searches)

    # -- values

    def _value(self, value: Any, path: str, key: str, findings: list[Detection], level: int = 0) -> Any:
        """Return the value redacted; `key` is the name of a text, for rules that need one."""
        if isinstance(value, str):
            return self._text(value, path, key, findings)
        if not isinstance(value, dict | list | tuple) or (0 < level < LEVELS_AS_A_WHOLE and self._is_clean(value)):
            return value
        if isinstance(value, dict):
            return self._object(value, path, findings, level + 1)
        return [self._value(item, f"{path}[{number}]", "", findings, level + 1) for number, item in enumerate(value)]

    def _is_clean(self, value: Any) -> bool:
        encoded = _encoded(value)
        return encoded is not None and not self.suspicious(encoded)

    def _object(self, value: dict[Any, Any], path: str, findings: list[Detection], level: int) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, item in value.items():
            shown, rules = self._span_text(str(key), self._searches)
            inside = f"{path}{_step(shown)}"
            findings += [Detection(inside, rule) for rule in rules]
            made[_free(shown, made, value) if rules else key] = self._value(item, inside, str(key), findings, level)
        return made

    # -- texts

    def _text(self, text: str, path: str, key: str, findings: list[Detection]) -> str:
        """Return the text redacted.

        A text that is JSON itself is read as the texts inside it: the form that a prompt asks answers to have is no raw
        prompt. A secret is one in any form, so it is searched for once more in the whole.
        """
        searches = self._searches
        if text.startswith(_CONTAINERS) and (parsed := _json_of(text)) is not None:
            inside: list[Detection] = []
            with suppress(RecursionError):
                redacted = self._value(parsed[0], path, key, inside)
                searches = (self._secrets,)
                if inside:
                    text = json.dumps(redacted, ensure_ascii=False, separators=(",", ":"))
                    findings += inside
        text, rules = self._span_text(text, searches, key)
        findings += [Detection(path, rule) for rule in rules]
        return text

    def _span_text(self, text: str, searches: Sequence[Search], key: str = "") -> tuple[str, list[str]]:
        """Replace spans until there is none; return the rules that found one."""
        data = text.encode(errors="surrogatepass")
        found: list[str] = []
        before = b'"%s":"' % key.encode(errors="surrogatepass") if key else b""
        for _ in range(ROUNDS):
            spans = _merged(_spans(before, data, searches))
            if not spans:
                return (data.decode(errors="surrogatepass"), found) if found else (text, found)
            found += [span.rule for span in spans]
            data = _replaced(data, spans)
        return f"[redacted:{found[0]}]", found


def _encoded(value: Any) -> bytes | None:
    """Return the value as JSON; None for a text that UTF-8 does not have, which must be looked at itself."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return None


@cache
def _search_of_rules() -> RuleSearch:
    return RuleSearch(RULES)


def _spans(before: bytes, data: bytes, searches: Sequence[Search]) -> Iterator[FoundSpan]:
    """Yield the spans of every reading of the text, as places in `data`; what was redacted before is left alone."""
    text = before + data + (b'"' if before else b"")
    first, last = len(before), len(before) + len(data)
    for begin, piece in _between_markers(text):
        for reading in readings(piece):
            for search in searches:
                if not search.hits(reading.text):
                    continue
                for span in search.spans(reading.text):
                    start, end = reading.origin(span.start, span.end)
                    start, end = max(begin + start, first), min(begin + end, last)
                    if start < end:
                        yield FoundSpan(start - first, end - first, span.rule)


def _between_markers(text: bytes) -> Iterator[tuple[int, bytes]]:
    begin = 0
    for match in _MARKER.finditer(text):
        if begin < match.start():
            yield begin, text[begin : match.start()]
        begin = match.end()
    if begin < len(text):
        yield begin, text[begin:]


def _merged(spans: Iterable[FoundSpan]) -> list[FoundSpan]:
    """Join overlapping spans under the rule of the first; a rule of its own form goes before a general one."""
    merged: list[FoundSpan] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = FoundSpan(last.start, max(last.end, span.end), _stronger(last.rule, span.rule))
        else:
            merged.append(span)
    return merged


_GENERAL = ("generic_api_key", "generic_password", "password_option", "authorization_bearer", "raw_prompt")


def _stronger(one: str, other: str) -> str:
    return other if one in _GENERAL and other not in _GENERAL else one


def _replaced(data: bytes, spans: Iterable[FoundSpan]) -> bytes:
    parts, done = [], 0
    for span in spans:
        start, end = _whole_characters(data, span.start, span.end)
        parts += [data[done:start], b"[redacted:%s]" % span.rule.encode()]
        done = max(end, done)
    return b"".join((*parts, data[done:]))


def _whole_characters(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Widen a span to whole characters of UTF-8."""
    while start > 0 and data[start] & 0xC0 == 0x80:  # noqa: PLR2004 - a continuation byte
        start -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:  # noqa: PLR2004 - the same
        end += 1
    return start, end


# -- JSON


def _json_of(text: str) -> tuple[Any] | None:
    """Return the decoded JSON of a text in a tuple; None where it is none, or decoding would lose a part of it."""
    try:
        return (json.loads(text, object_pairs_hook=_all_pairs, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        return None


def _all_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice, and decoding would keep one")
    return made


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _step(key: str) -> str:
    """Return the part of a path for a key."""
    short = key if len(key) <= LONGEST_KEY else f"{key[:LONGEST_KEY]}…"
    return f".{short}" if _NAME.fullmatch(short) else f"[{json.dumps(short, ensure_ascii=False)}]"


def _free(key: str, made: dict[str, Any], value: dict[Any, Any]) -> str:
    """Return the key, with a number where the object has it already."""
    number, free = 1, key
    while free in made or free in value:
        number += 1
        free = f"{key} ({number})"
    return free
