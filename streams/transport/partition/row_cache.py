"""The cache of decoded rows: one bound over all tables of a worker, in bytes of the rows' encoded form.

It has two generations instead of a list in order of use: a row not used while the young generation filled up is
dropped, and using a row costs one look-up in a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

# Bytes counted for a row of at most this size, and for one that was never encoded here.
SMALL_ROW_BYTES = 1024
# Bound of encoded rows; decoded ones take about four times as much memory.
DEFAULT_BYTES = 32 * 1024 * 1024


class Generations:
    """The decoded rows of one table: a young generation used lately, and an old one."""

    __slots__ = ("_gone", "old", "old_sizes", "sizes", "young")

    def __init__(self, gone: Callable[[Iterable[bytes]], None]) -> None:
        """`gone` is called with the keys of dropped rows."""
        self._gone = gone
        self.young: dict[bytes, Any] = {}
        self.old: dict[bytes, Any] = {}
        self.sizes: dict[bytes, int] = {}
        """Bytes of encoded rows above SMALL_ROW_BYTES."""
        self.old_sizes: dict[bytes, int] = {}

    def rotate(self) -> None:
        """Drop the old generation, and make the young one old."""
        self._gone(self.old)
        self.old, self.young = self.young, {}
        self.old_sizes, self.sizes = self.sizes, {}

    def size(self, key: bytes) -> int:
        """Return the bytes of the encoded row; SMALL_ROW_BYTES while unknown."""
        return self.sizes.get(key) or self.old_sizes.get(key) or SMALL_ROW_BYTES


class RowCache:
    """The bound that all tables of a worker share."""

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        """`limit`: bytes of encoded rows in both generations together."""
        self._half = max(1, limit // 2)
        self._young = 0
        self._members: dict[Generations, None] = {}

    def join(self, gone: Callable[[Iterable[bytes]], None]) -> Generations:
        """Add a table; returns its generations."""
        member = Generations(gone)
        self._members[member] = None
        return member

    def leave(self, member: Generations) -> None:
        """Remove a table."""
        self._members.pop(member, None)

    def add(self, size: int) -> None:
        """Count bytes added to the young generation; at half of the bound, rotate the generations of all tables."""
        self._young += size
        if self._young >= self._half:
            self._young = 0
            for member in self._members:
                member.rotate()
