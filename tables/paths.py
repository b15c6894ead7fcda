"""Dotted paths into JSON values, as guards and templates write them."""

from __future__ import annotations

from typing import Any

MAX_INDEX_DIGITS = 9


class _Missing:
    """The result of a path that leads nowhere; it differs from every JSON value, also from null."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


def dig(value: Any, path: str) -> Any:
    """Return the value at the dotted `path` (`a.b.0.c`: keys, and indexes of lists), or MISSING."""
    if not path:
        return value
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdecimal() and len(part) <= MAX_INDEX_DIGITS:
            index = int(part)
            if index >= len(value):
                return MISSING
            value = value[index]
        else:
            return MISSING
    return value
