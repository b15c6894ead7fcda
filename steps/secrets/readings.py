"""The readings of a text: as it is, and with the escapes of JSON undone, once for each level of JSON inside JSON."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

# Levels of JSON inside JSON that are undone. Each level reads the bytes once more.
ESCAPE_LEVELS = 3

_UNICODE = rb"u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[0-9a-fA-F]{4})"
_ESCAPE = re.compile(rb'\\(?:["\\/bfnrt]|' + _UNICODE + rb")")
_SPLIT = re.compile(rb'(\\(?:["\\/bfnrt]|' + _UNICODE + rb"))").split
# An escape other than those of quotes and line breaks.
_RARE = re.compile(rb'\\[^n"]').search
_LETTERS = {b'"': b'"', b"\\": b"\\", b"/": b"/", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def plain_readings(text: bytes, *, json: bool = False) -> Iterator[bytes]:
    """Yield the readings without their origin, several times faster.

    Of encoded JSON the text itself is no reading where it has escapes: a value is what they stand for.
    """
    if not json or b"\\" not in text:
        yield text
    for _ in range(ESCAPE_LEVELS + json):
        if b"\\" not in text:
            return
        undone = _undone(text)
        if undone == text:
            return
        text = undone
        yield text


def _undone(text: bytes) -> bytes:
    if _RARE(text) is None:
        return text.replace(b'\\"', b'"').replace(b"\\n", b"\n")
    parts = _SPLIT(text)
    parts[1::2] = map(_plain, parts[1::2])
    return b"".join(parts)


class Reading(NamedTuple):
    """One reading, with the place of each byte in the text."""

    text: bytes
    starts: list[int]
    """Ascending offsets in the reading: of the whole text, and of each escape and of what follows it."""
    origins: list[tuple[int, int]]
    """For each of `starts` its place in the text, and the bytes of an escape; 0 for bytes that stay as they are."""

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the text of a span of the reading; an escape belongs to it as a whole."""
        return self._begin(start), self._end(end - 1)

    def _begin(self, at: int) -> int:
        number = bisect_right(self.starts, at) - 1
        begin, escape = self.origins[number]
        return begin if escape else begin + at - self.starts[number]

    def _end(self, last: int) -> int:
        number = bisect_right(self.starts, last) - 1
        begin, escape = self.origins[number]
        return begin + escape if escape else begin + last - self.starts[number] + 1


def readings(text: bytes) -> Iterator[Reading]:
    """Yield the readings of `plain_readings`, each with the origin of its bytes."""
    reading = Reading(text, [0], [(0, 0)])
    yield reading
    for _ in range(ESCAPE_LEVELS):
        if b"\\" not in reading.text:
            return
        reading = _undone_with_origin(reading)
        yield reading


def _undone_with_origin(outer: Reading) -> Reading:
    parts: list[bytes] = []
    starts: list[int] = []
    origins: list[tuple[int, int]] = []
    size = done = 0

    def add(begin: int, end: int, plain: bytes | None) -> None:
        """Add the bytes [begin, end) of the outer reading, or what their escape stands for."""
        nonlocal size
        if plain is not None:
            first, last = outer.origin(begin, end)
            starts.append(size)
            origins.append((first, last - first))
        else:
            _add_plain(outer, begin, end, size, starts, origins)
            plain = outer.text[begin:end]
        parts.append(plain)
        size += len(plain)

    for match in _ESCAPE.finditer(outer.text):
        if done < match.start():
            add(done, match.start(), None)
        add(match.start(), match.end(), _plain(match[0]))
        done = match.end()
    if done < len(outer.text):
        add(done, len(outer.text), None)
    return Reading(b"".join(parts), starts or [0], origins or [(0, 0)])


def _add_plain(
    outer: Reading, begin: int, end: int, size: int, starts: list[int], origins: list[tuple[int, int]]
) -> None:
    """Add the origins of bytes that this level leaves as they are; they may cross escapes of the level outside."""
    number = bisect_right(outer.starts, begin) - 1
    at = begin
    while at < end:
        first, escape = outer.origins[number]
        starts.append(size + at - begin)
        origins.append((first, escape) if escape else (first + at - outer.starts[number], 0))
        number += 1
        at = outer.starts[number] if number < len(outer.starts) else end


def _plain(escape: bytes) -> bytes:
    """Return the UTF-8 of one escape; a lone surrogate gives the bytes that `surrogatepass` gives."""
    if escape[1:2] != b"u":
        return _LETTERS[escape[1:2]]
    code = int(escape[2:6], 16)
    if len(escape) > len(b"\\u0000"):
        code = 0x10000 + ((code - 0xD800) << 10) + int(escape[8:12], 16) - 0xDC00
    return chr(code).encode(errors="surrogatepass")
