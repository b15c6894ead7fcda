"""An index of the topic `deadletters`, so that lists, counts and look-ups need not read the whole topic each time.

It holds the place and the origin of the newest letters, not their content. Each use first reads on from where the last
one stopped, in pieces between which other tasks run.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ports.log import Log, Record
from streams.dead_letters import letter_of, placed_letter
from streams.turns import Turns

# Letters in the index. Older ones stay in the topic, and are only counted.
MOST_INDEXED = 100_000
# Letters that are indexed, examined or shown before other tasks get the event loop.
LETTERS_PER_PIECE = 50
# Offsets of one read of the topic, for a page.
OFFSETS_PER_READ = 50
# Letters between two wanted ones that are rather read along than skipped by a second read.
READ_ALONG = 50


class LetterPlace(NamedTuple):
    """The place of one dead letter in the topic, and its origin."""

    timestamp: int
    """Append time in milliseconds."""
    partition: int
    offset: int
    code: str
    origin: tuple[str, int, int]
    """Topic or stream, partition, offset or sequence of the original."""


class LetterIndex:
    """The newest dead letters of all partitions. Methods raise LogUnavailable."""

    def __init__(self, log: Log, turns: Turns, topic: str, most: int = MOST_INDEXED) -> None:
        self._log = log
        self._turns = turns
        self._topic = topic
        self._most = most
        self._places: dict[int, deque[LetterPlace]] = {}
        """By partition, in the order of offsets."""
        self._read_to: dict[int, int] = {}
        self._older: Counter[int] = Counter()
        """By partition: letters that are in the topic and not in the index."""
        self._codes: Counter[str] = Counter()
        self._topics: Counter[str] = Counter()
        self._reading = asyncio.Lock()

    @property
    def codes(self) -> Mapping[str, int]:
        """The indexed letters by code."""
        return +self._codes

    @property
    def indexed(self) -> int:
        return self._codes.total()

    def total(self, topic: str = "") -> int:
        """The letters in the topic; with `topic` the indexed ones that came from it."""
        return self._topics[topic] if topic else self.indexed + self._older.total()

    async def refresh(self) -> None:
        """Read the letters that were written since the last time."""
        async with self._reading:
            for partition, (start, end) in enumerate(await self._log.ends(self._topic)):
                self._forget_deleted(partition, start, end)
                await self._read_on(partition, start, end)

    async def newest(self, limit: int, offset: int, topic: str = "") -> Sequence[LetterPlace]:
        """A page of the index, newest first; of letters with the same time the last one in the log comes first."""
        return await self._turns.run(self._page(limit, offset, topic))

    async def find(self, origin: tuple[str, int, int]) -> LetterPlace | None:
        """The newest letter with this origin."""
        return await self._turns.run(self._find(origin))

    async def records(self, places: Sequence[LetterPlace]) -> list[Record]:
        """The letters at these places, in their order, without those that were deleted meanwhile."""
        found: dict[tuple[int, int], Record] = {}
        wanted = {(place.partition, place.offset) for place in places}
        for partition, first, last in _ranges(places):
            for begin in range(first, last + 1, OFFSETS_PER_READ):
                async for records in self._log.read(
                    self._topic, partition, begin, min(begin + OFFSETS_PER_READ, last + 1)
                ):
                    found.update((at, record) for record in records if (at := (partition, record.offset)) in wanted)
                    await self._turns.next()
        return [found[at] for place in places if (at := (place.partition, place.offset)) in found]

    # -- reading on

    def _forget_deleted(self, partition: int, start: int, end: int) -> None:
        """Drop the letters that the topic no longer has; all of them, if it was created anew."""
        places = self._places.setdefault(partition, deque())
        anew = end < self._read_to.get(partition, 0)
        while places and (anew or places[0].offset < start):
            self._uncount(places.popleft())
            self._older[partition] = 0
        if anew:
            self._read_to[partition] = start

    async def _read_on(self, partition: int, start: int, end: int) -> None:
        first = max(self._read_to.get(partition, start), start)
        if end - first > self._most:
            self._older[partition] += end - self._most - first
            first = end - self._most
        async for records in self._log.read(self._topic, partition, first, end):
            for begin in range(0, len(records), LETTERS_PER_PIECE):
                for record in records[begin : begin + LETTERS_PER_PIECE]:
                    self._add(record)
                await self._turns.next()
        self._read_to[partition] = end

    def _add(self, record: Record) -> None:
        letter = placed_letter(record)
        place = LetterPlace(
            record.timestamp,
            record.partition,
            record.offset,
            letter_of(record).code,
            (letter.topic, letter.partition, letter.offset),
        )
        self._places[record.partition].append(place)
        self._read_to[record.partition] = record.offset + 1
        self._codes[place.code] += 1
        self._topics[letter.topic] += 1
        if self.indexed > self._most:
            oldest = min((places[0] for places in self._places.values() if places), key=lambda one: one.timestamp)
            self._uncount(self._places[oldest.partition].popleft())
            self._older[oldest.partition] += 1

    def _uncount(self, place: LetterPlace) -> None:
        self._codes[place.code] -= 1
        self._topics[place.origin[0]] -= 1

    # -- looking up

    def _page(self, limit: int, offset: int, topic: str) -> Generator[None, None, list[LetterPlace]]:
        newest = heapq.merge(*map(reversed, map(tuple, self._places.values())), key=lambda place: -place.timestamp)
        found: list[LetterPlace] = []
        skipped = 0
        for number, place in enumerate(newest, start=1):
            if topic in ("", place.origin[0]):
                if skipped < offset:
                    skipped += 1
                else:
                    found.append(place)
            if len(found) == limit:
                break
            if number % LETTERS_PER_PIECE == 0:
                yield
        return found

    def _find(self, origin: tuple[str, int, int]) -> Generator[None, None, LetterPlace | None]:
        found: LetterPlace | None = None
        for places in [tuple(places) for places in self._places.values()]:
            for begin in range(0, len(places), LETTERS_PER_PIECE):
                for place in places[begin : begin + LETTERS_PER_PIECE]:
                    if place.origin == origin and (found is None or place.timestamp >= found.timestamp):
                        found = place
                yield
        return found


def _ranges(places: Iterable[LetterPlace]) -> Iterator[tuple[int, int, int]]:
    """Partition, first and last offset of each read that the places need."""
    begun: tuple[int, int, int] | None = None
    for partition, offset in sorted((place.partition, place.offset) for place in places):
        if begun is not None and begun[0] == partition and offset - begun[2] <= READ_ALONG:
            begun = partition, begun[1], offset
            continue
        if begun is not None:
            yield begun
        begun = partition, offset, offset
    if begun is not None:
        yield begun
