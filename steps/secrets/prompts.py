"""Raw prompts: a text that holds 32 or more consecutive characters of a prompt, as its definition writes it.

White space is folded on both sides. Blocks of 16 characters are cut from every prompt, 17 apart, so that any 32
characters hold a whole block: RE2 looks for the blocks, and only around those that it finds windows are compared.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import re2  # type: ignore[import-untyped]

from steps.secrets.search import FoundSpan, options, pattern_set

RAW_PROMPT = "raw_prompt"
# Characters of a prompt that make a text a raw prompt.
WINDOW = 32
_BLOCK = 16
_STRIDE = WINDOW - _BLOCK + 1

_PLACEHOLDER = re.compile(r"\$?\$\{[^{}]*\}")
# White space, as `str.split` and as UTF-8 knows it, and as RE2 reads it byte by byte.
_SPACES = (
    rb"(?:[\t-\r\x1c-\x20]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)+"
)


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
        self._set = pattern_set(map(_spaced, sorted(blocks)))
        self._blocks = _any_of(sorted(blocks))
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

    def _starts(self, text: str) -> Iterator[int]:
        """Yield the offsets of windows, ascending."""
        done = 0
        data = text.encode(errors="surrogateescape")
        ascii_only = len(data) == len(text)
        at = count = 0
        for match in self._blocks.finditer(data):
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


def _any_of(blocks: Iterable[str]) -> Any:
    escaped = (re2.escape(block.encode(errors="surrogateescape")) for block in blocks)
    return re2.compile(b"(?:" + b"|".join(escaped) + b")", options(captures=False))
