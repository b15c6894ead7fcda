"""Bounds the values of a metric's label, so that a caller with many names cannot fill Prometheus with series.

The first 200 names have a series each; all later ones share `other`. A worker admits the definitions of its folder
first, by name, so workers with the same folder agree on them; names that only starts bring are admitted as they come,
and may differ from worker to worker. A name that was admitted stays, for a counter must not fall.
"""

from __future__ import annotations

from collections.abc import Iterable

MOST_NAMES = 200
OTHER = "other"


class BoundedNames:
    """The names that have a series of their own."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._known: dict[str, str] = {}

    def admit(self, names: Iterable[str]) -> None:
        """Admit names in the order of the alphabet, as far as there is room."""
        for name in sorted(names):
            self.of(name)

    def of(self, name: str) -> str:
        """Return the name, or `other` once there is no room for one more."""
        known = self._known.get(name)
        if known is not None:
            return known
        if len(self._known) >= self._most:
            return OTHER
        self._known[name] = name
        return name
