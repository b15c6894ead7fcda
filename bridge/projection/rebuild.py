"""Rebuilds: a store is read again from the log, and rows that the log does not have are removed."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable
from typing import NamedTuple

from bridge.projection.store import Place, PlacedStore


class Rebuild:
    """The rows of one partition that were seen since its rebuild began, by the hash of their id: eight bytes for each.

    Two ids with one hash keep a row that should go; of a million rows that is one in some ten million rebuilds.
    """

    def __init__(self, number: str, until: int) -> None:
        self.id = number
        self.until = until
        """The log end when it began; past it every row of the log was seen."""
        self._seen = array("q")
        self._is_sorted = True

    def saw(self, instance_ids: Iterable[str]) -> None:
        """Note rows that the log has."""
        self._seen.extend(map(hash, instance_ids))
        self._is_sorted = False

    def unseen(self, instance_ids: Iterable[str]) -> Collection[str]:
        """Return the ids that were not seen."""
        if not self._is_sorted:
            self._seen = array("q", sorted(self._seen))
            self._is_sorted = True
        return [instance_id for instance_id in instance_ids if not self._has(hash(instance_id))]

    def _has(self, number: int) -> bool:
        place = bisect_left(self._seen, number)
        return place < len(self._seen) and self._seen[place] == number


class RebuildProgress(NamedTuple):
    """The state of a rebuild of a whole store."""

    done: int
    """Partitions that are rebuilt."""
    partitions: int
    begun: int
    """Partitions that a projector has begun, those that are done included."""
    share: float
    """Part of the whole, from 0 to 1."""


async def begin_rebuild(store: PlacedStore, number: str, partitions: Iterable[int]) -> None:
    """Ask the projectors to read partitions again from their start. Raises StoreError."""
    before = {partition: Place.read(text) for partition, text in (await store.places()).items()}
    since = {partition: place.since for partition, place in before.items() if place is not None}
    await store.set_places({one: Place(0, number, since=since.get(one, 0)).text for one in partitions})


async def rebuild_progress(store: PlacedStore, number: str, partitions: int) -> RebuildProgress:
    """Return the progress of a rebuild of some partitions, as projectors note it in the store. Raises StoreError."""
    places = [Place.read(text) for text in (await store.places()).values()]
    left = [place for place in places if place is not None and place.rebuild == number]
    begun = [place for place in left if place.end]
    done = partitions - len(left)
    share = (done + sum(min(place.next / place.end, 1.0) for place in begun)) / partitions
    return RebuildProgress(done, partitions, done + len(begun), share)
