"""How many decoded rows a worker keeps: one bound over all its tables, in bytes of the rows' encoded form.

Two generations instead of a list in order of use: what was not asked for while the young one filled up goes, and a row
that is asked for costs one look into a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

# Bytes counted for a row that is no larger, and for one that was never encoded here.
SMALL_ROW_BYTES = 1024
# Of encoded rows; decoded ones take some four times as much.
DEFAULT_BYTES = 32 * 1024 * 1024


class Generations:
    """The decoded rows of one table: those asked for lately, and those asked for before."""

    __slots__ = ("_gone", "old", "old_sizes", "sizes", "young")

    def __init__(self, gone: Callable[[Iterable[bytes]], None]) -> None:
        """`gone` hears which rows are kept no longer."""
        self._gone = gone
        self.young: dict[bytes, Any] = {}
        self.old: dict[bytes, Any] = {}
        self.sizes: dict[bytes, int] = {}
        """Bytes of the encoded form, of rows that are no small ones."""
        self.old_sizes: dict[bytes, int] = {}

    def rotate(self) -> None:
        """What is old goes, and what is young is old."""
        self._gone(self.old)
        self.old, self.young = self.young, {}
        self.old_sizes, self.sizes = self.sizes, {}

    def size(self, key: bytes) -> int:
        """Bytes of the encoded row, as far as is known."""
        return self.sizes.get(key) or self.old_sizes.get(key) or SMALL_ROW_BYTES


class RowCache:
    """The bound that all tables of a worker share."""

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        """`limit`: bytes of encoded rows in both generations together."""
        self._half = max(1, limit // 2)
        self._young = 0
        self._members: dict[Generations, None] = {}

    def join(self, gone: Callable[[Iterable[bytes]], None]) -> Generations:
        """A table's place in it."""
        member = Generations(gone)
        self._members[member] = None
        return member

    def leave(self, member: Generations) -> None:
        """The table is given up."""
        self._members.pop(member, None)

    def add(self, size: int) -> None:
        """So many bytes more are young; once they are half of the bound, what is old goes, and they are old."""
        self._young += size
        if self._young >= self._half:
            self._young = 0
            for member in self._members:
                member.rotate()
