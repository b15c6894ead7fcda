"""A read model as its projector keeps it: the topic that it follows, and how records become writes of its store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from bridge.projection.store import Place, PlacedStore, StoreError
from ports.log import Record

# The changes of one write of the store.
C = TypeVar("C")


class Move(NamedTuple):
    """The step of one partition that a write makes; it is applied only where the store has the expected place."""

    partition: int
    expected: str
    """Text of a place, empty for none."""
    place: Place
    """The place that the store then has."""


class ReadModel(Generic[C]):
    """Base class of the read models, with defaults for the hooks that one does not use."""

    loses_records = False
    """True where the log deletes old records of the topic, so that a projector may come too late for some."""

    def __init__(self, store: PlacedStore, topic: str, group: str) -> None:
        """`topic` and `group` with their prefix."""
        self.store: PlacedStore = store
        self.topic = topic
        self.group = group

    async def changes(self, records: Sequence[Record]) -> C:
        """Return what records of one partition bring. Raises LogUnavailable, FormatTooNew."""
        raise NotImplementedError

    def nothing(self) -> C:
        """Return changes that move only the place."""
        raise NotImplementedError

    async def write(self, move: Move, changes: C) -> str:
        """Write changes and place atomically, and return the text of the store's place then. Raises StoreError."""
        raise NotImplementedError

    def count(self, changes: C) -> int:
        """Return the number of rows or events that are written or removed."""
        raise NotImplementedError

    # -- hooks of a write

    async def failing(self, changes: C, error: StoreError, attempts: int) -> None:
        """Hear of a write that has failed often and long."""

    async def written(self, changes: C) -> None:
        """Hear of a write that is done."""

    async def up_to_date(self, partitions: Collection[int]) -> None:
        """Hear that the store has all records of these partitions."""

    def moved(self) -> None:
        """Hear that the store may have lost what it had: its place is another one."""

    def taken(self) -> None:
        """Hear of a partition that came from another process."""

    async def close(self) -> None:
        """Close what the model opened beside the store."""

    # -- hooks of a rebuild

    def seen(self, changes: C) -> Iterable[str]:
        """Return the ids of the rows that the log has, by these changes."""
        del changes
        return ()

    async def stored_ids(self) -> AsyncIterator[Sequence[str]]:
        """Iterate over the ids of all rows of the store that a rebuild may remove, in pages. Raises StoreError."""
        nothing: Sequence[Sequence[str]] = ()
        for page in nothing:
            yield page

    def removal(self, ids: Collection[str]) -> C:
        """Return the removal of rows."""
        del ids
        return self.nothing()
