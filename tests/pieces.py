"""Runs work that yields after each piece, without the pauses."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")


def in_one_go(pieces: Generator[None, None, Result]) -> Result:
    """Return the result of all pieces."""
    try:
        while True:
            next(pieces)
    except StopIteration as end:
        result: Result = end.value
        return result
