"""Raw prompts: a text that holds 32 or more consecutive characters of a prompt, as its definition writes it.

White space is folded on both sides. Blocks of 16 characters are cut from every prompt, 17 apart, so that any 32
characters hold a whole block: RE2 looks for the blocks, and only around those that it finds windows are compared.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import re2  # type: ignore[import-untyped]

from steps.secrets.search import FoundSpan, options, pattern_set

RAW_PROMPT = "raw_prompt"
# Characters of a prompt that make a text a raw prompt.
WINDOW = 32
# Learnt prompts that are searched for, in characters and in sets; a common search of so many takes 0.2 s to make.
KNOWN_CHARACTERS, KNOWN_SETS = 64 * 1024, 4096
# Searches for sets learnt lately.
RECENT = 8
_BLOCK = 16
_STRIDE = WINDOW - _BLOCK + 1

_PLACEHOLDER = re.compile(r"\$?\$\{[^{}]*\}")
# White space, or bytes outside of ASCII, among which is the white space of Unicode: the set may only find too much.
_SPACES = rb"[\t-\r\x1c-\x20\x80-\xff]+"


def searchable(prompts: Iterable[str]) -> list[str]:
    """Return the parts between placeholders that are long enough to be searched for, with white space folded."""
    parts = [part for prompt in prompts for part in _PLACEHOLDER.split(prompt.strip())]
    folded = [re.sub(r"\s+", " ", part) for part in parts]
    return sorted({part for part in folded if len(part) >= WINDOW})


class PromptSearch:
    """Searches for the searchable parts of prompts."""

    def __init__(self, parts: Iterable[str]) -> None:
        parts = tuple(parts)
        self._windows = {part[at : at + WINDOW] for part in parts for at in range(len(part) - WINDOW + 1)}
        blocks = {part[at : at + _BLOCK] for part in parts for at in range(0, len(part) - _BLOCK + 1, _STRIDE)}
        self._blocks = sorted(blocks)
        self._set = pattern_set(map(_spaced, self._blocks))
        self.looked_at = 0
        """Bytes given to RE2 so far."""

    def hits(self, text: bytes) -> bool:
        self.looked_at += len(text)
        return self._set.Match(text) is not None

    def spans(self, text: bytes) -> Iterator[FoundSpan]:
        if not self.hits(text):
            return
        folded = _Folded(text.decode(errors="surrogateescape"))
        self.looked_at += len(text)
        for begin, end in _runs(self._starts(folded.text)):
            yield FoundSpan(*folded.origin(begin, end), RAW_PROMPT)

    @cached_property
    def _any_block(self) -> Any:
        escaped = (re2.escape(block.encode(errors="surrogateescape")) for block in self._blocks)
        return re2.compile(b"(?:" + b"|".join(escaped) + b")", options(captures=False))

    def _starts(self, text: str) -> Iterator[int]:
        """Yield the offsets of windows, ascending."""
        done = 0
        data = text.encode(errors="surrogateescape")
        ascii_only = len(data) == len(text)
        at = count = 0
        for match in self._any_block.finditer(data):
            if ascii_only:
                block = match.start()
            else:
                count += len(data[at : match.start()].decode(errors="surrogateescape"))
                at = match.start()
                block = count
            for start in range(max(done, block - _STRIDE + 1), block + _BLOCK):
                if text[start : start + WINDOW] in self._windows:
                    yield start
            done = max(done, block + _BLOCK)


class _Folded:
    """A text with its white space folded, and the place of each character in UTF-8."""

    def __init__(self, text: str) -> None:
        parts: list[str] = []
        self._starts: list[int] = []
        self._words: list[tuple[int, str, int]] = []
        size = place = 0
        for match in re.finditer(r"\s+|\S+", text):
            word = match[0]
            length = len(word.encode(errors="surrogateescape"))
            shown = " " if word[0].isspace() else word
            self._starts.append(size)
            self._words.append((place, shown, length))
            parts.append(shown)
            size += len(shown)
            place += length
        self.text = "".join(parts)

    def origin(self, begin: int, end: int) -> tuple[int, int]:
        """Return the place of a span; white space belongs to it as a whole."""
        return self._place(begin)[0], self._place(end - 1)[1]

    def _place(self, at: int) -> tuple[int, int]:
        number = bisect_right(self._starts, at) - 1
        place, shown, length = self._words[number]
        if shown == " ":
            return place, place + length
        inside = at - self._starts[number]
        first = place + (inside if len(shown) == length else len(shown[:inside].encode(errors="surrogateescape")))
        return first, first + len(shown[inside].encode(errors="surrogateescape"))


def _runs(starts: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Join windows that touch or overlap."""
    begin = end = -1
    for start in starts:
        if start > end:
            if end > begin:
                yield begin, end
            begin = start
        end = start + WINDOW
    if end > begin:
        yield begin, end


def _spaced(block: str) -> bytes:
    """Return the pattern of a block before white space is folded."""
    return _SPACES.join(re2.escape(word.encode(errors="surrogateescape")) for word in block.split(" "))


class KnownPrompts:
    """The searches for all prompts that were learnt, the newest of them alone and the others together.

    So a prompt costs its own search when it is learnt, and a common one only after RECENT others.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, ...], None] = OrderedDict()
        self._parts: OrderedDict[str, None] = OrderedDict()
        self._size = 0
        self.searches: tuple[PromptSearch, ...] = ()

    def learn(self, prompts: tuple[str, ...]) -> bool:
        """Learn prompts; return whether `searches` has changed. Above KNOWN_CHARACTERS the oldest are forgotten."""
        if prompts in self._seen:
            return False
        self._seen[prompts] = None
        while len(self._seen) > KNOWN_SETS:
            self._seen.popitem(last=False)
        new = [part for part in searchable(prompts) if part not in self._parts]
        if not new:
            return False
        self._parts.update(dict.fromkeys(new))
        self._size += sum(map(len, new))
        while self._size > KNOWN_CHARACTERS and len(self._parts) > 1:
            self._size -= len(self._parts.popitem(last=False)[0])
        if len(self.searches) < RECENT:
            self.searches = (*self.searches, PromptSearch(new))
        else:
            self.searches = (PromptSearch(self._parts),)
        return True
