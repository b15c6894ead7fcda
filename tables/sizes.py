"""Sizes of JSON values, measured without recursion; the cost of work on them follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_HUGE = 1 << 63
# Types that are no map; a question for an abstract class is dear.
_PLAIN = frozenset({str, int, float, bool, type(None), list})


class Size(NamedTuple):
    """The size of data: all its values, the entries of its maps, and the bytes of its texts."""

    values: int
    entries: int
    text_bytes: int
    has_huge: bool
    """True where a whole number has more than 64 bits."""


def text_bytes(text: str) -> int:
    """Return a bound of the bytes of a text, found without encoding it."""
    return len(text) if text.isascii() else 4 * len(text)


def size_of(value: Any, most_values: int) -> Size:
    """Measure data, and stop soon after `most_values`."""
    values, entries, characters, has_huge = 1, 0, 0, False
    left = [value]
    while left and values <= most_values:
        item = left.pop()
        kind = type(item)
        if kind is dict or (kind not in _PLAIN and isinstance(item, Mapping)):
            entries += len(item)
            values += len(item)
            characters += 4 * sum(map(len, map(str, item)))
            left += item.values()
        elif kind is list or isinstance(item, list):
            values += len(item)
            left += item
        elif isinstance(item, str):
            characters += text_bytes(item)
        elif isinstance(item, int) and not -_HUGE <= item < _HUGE:
            has_huge = True
    return Size(values, entries, characters, has_huge)
