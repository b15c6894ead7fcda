"""Reads the history of one ceremony out of the topic `events`: its newest events, or all of them in pages.

A partition may hold millions of events, and the log has no index by ceremony. So only the span between the ceremony's
start and its last change is read (`HistorySpans`), a piece in each turn of the event loop, and each call is bounded by
events, bytes and seconds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from ports.clock import Clock
from ports.history import HistoryEvent
from ports.log import Log, LogUnavailable, Record
from streams import topics
from streams.api import History, HistoryPlace, Unavailable
from streams.event_records import begins, event_of, header, is_event_of, order_of
from streams.history_span import HistorySpans, Span
from streams.turns import Turns

READ_SECONDS = 10.0
# Time of one page of a whole history: the caller learns how far it has come.
PAGE_SECONDS = 3.0
# Bytes of all envelopes in one answer.
LARGEST_ANSWER_BYTES = 3 * 1024 * 1024
# Records read at a time, doubled with each piece: a new ceremony is found at once, an old one in few reads.
FIRST_PIECE_RECORDS, LARGEST_PIECE_RECORDS = 1_000, 32_000
# Records examined in one turn.
RECORDS_PER_TURN = 1_000
NO_LIMIT_REACHED = "all that the log has of it"
MISSING_EARLIER = "events are missing, as an earlier page says"


class Life(NamedTuple):
    """The times between which a ceremony has caused events, in milliseconds."""

    begun_at: int
    changed_at: int


class FirstEvent(NamedTuple):
    """The first event that the log has of a ceremony, as far as it was looked for."""

    record: Record | None
    """None where none was found."""
    offset: int
    """Of the record; without one everything before it was read."""
    span: Span

    @property
    def searched(self) -> bool:
        """True where it was found, or the log has none."""
        return self.record is not None or self.offset >= self.span.end

    @property
    def is_beginning(self) -> bool:
        return self.record is not None and begins(self.record)


class _NewestEvents:
    """The events found so far, newest piece first; full at the limit of number or size."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._seen: dict[str, Record] = {}
        self.begun = False
        """True when the ceremony's first event is among them."""

    def add(self, piece: Sequence[Record]) -> bool:
        """Add the events of an older piece; return False when they do not all fit."""
        for record in reversed(piece):
            effect_id = header(record, topics.EFFECT_ID)
            # An event written again after a crash: the older record keeps its place.
            known = self._seen.pop(effect_id, None)
            self._size += len(record.value or b"") - len((known.value if known else None) or b"")
            if known is None and (len(self._seen) >= self._limit or (self._seen and self._size > LARGEST_ANSWER_BYTES)):
                return False
            self._seen[effect_id] = record
            self.begun = self.begun or begins(record)
        return True

    @property
    def oldest(self) -> int:
        """Offset of the oldest event found."""
        return next(reversed(self._seen.values())).offset

    def events(self) -> list[HistoryEvent]:
        return [event_of(record) for record in reversed(self._seen.values())]


class _Page:
    """The events of one page of a whole history, oldest first."""

    def __init__(self, place: HistoryPlace, limit: int, cut_off: str) -> None:
        """`cut_off`: why there are no events before the first one, if that is not the first of the ceremony."""
        self.place = place
        """The place behind the events of this page."""
        self.events: list[HistoryEvent] = []
        self._limit = limit
        self._cut_off = cut_off
        self._size = 0
        self._seen: set[str] = set()

    @property
    def offset(self) -> int:
        return self.place.offset

    def take(self, record: Record) -> bool:
        """Add one event of the ceremony; return False, and add nothing, where the page is full."""
        effect_id = header(record, topics.EFFECT_ID)
        order = order_of(effect_id)
        if effect_id in self._seen or (order is not None and self.place.passed(order)):
            return True  # written again after a crash
        size = len(record.value or b"")
        if len(self.events) >= self._limit or (self.events and self._size + size > LARGEST_ANSWER_BYTES):
            return False
        whole = self.place.whole if self.place.found else begins(record)
        is_cut = not self.place.found and not whole
        self.events.append(event_of(record)._replace(missing_before=self._cut_off if is_cut else ""))
        self._seen.add(effect_id)
        self._size += size
        self.place = self.place.after(record.offset + 1, order, whole=whole)
        return True

    def read_to(self, offset: int) -> None:
        """Note that everything before this offset was read."""
        self.place = self.place._replace(offset=offset)


class _Search:
    """Ends at the first event of a ceremony."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        """Of the event; before it is found, everything before was read."""
        self.record: Record | None = None

    def take(self, record: Record) -> bool:
        self.record, self.offset = record, record.offset
        return False

    def read_to(self, offset: int) -> None:
        self.offset = offset


class HistoryReader:
    """Reads histories of one topic."""

    def __init__(self, log: Log, clock: Clock, topic: str, turns: Turns) -> None:
        self._log = log
        self._clock = clock
        self._topic = topic
        self._turns = turns
        self._spans = HistorySpans(log, topic)

    # -- the newest events

    async def newest(self, partition: int, instance_id: str, limit: int, life: Life) -> History:
        """Return the newest `limit` events, oldest first. Raises Unavailable."""
        try:
            span = await self._spans.find(partition, life.begun_at, life.changed_at)
            return await self._newest(partition, instance_id.encode(), limit, span)
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error

    async def _newest(self, partition: int, key: bytes, limit: int, span: Span) -> History:
        found, stopped = _NewestEvents(limit), span.end
        try:
            async with self._clock.timeout(READ_SECONDS):
                piece = FIRST_PIECE_RECORDS
                while stopped > span.start and not found.begun:
                    first = max(span.start, stopped - piece)
                    records = [record async for record in self._own(partition, first, stopped, key)]
                    if not found.add(records):
                        message = f"there are older ones: at most {limit} are shown, and 3 MiB"
                        return History(found.events(), partition, found.oldest, complete=False, message=message)
                    stopped = first
                    piece = min(piece * 2, LARGEST_PIECE_RECORDS)
        except TimeoutError:
            message = f"the time was up after {READ_SECONDS:g} s; older events were not looked at"
            return History(found.events(), partition, stopped, complete=False, message=message)
        events = found.events()
        if found.begun:
            return History(events, partition, stopped, complete=True, message=NO_LIMIT_REACHED)
        reason = why_cut(span)
        events[:1] = [first._replace(missing_before=reason) for first in events[:1]]
        message = missing(events, reason)
        return History(events, partition, stopped, complete=False, message=message, cut_off=reason)

    # -- all events, in pages

    async def page(self, partition: int, instance_id: str, limit: int, life: Life, place: HistoryPlace) -> History:
        """Return the events from a place on, at most `limit`, oldest first. Raises Unavailable."""
        try:
            span = await self._spans.find(partition, life.begun_at, life.changed_at)
            page = _Page(place._replace(offset=max(place.offset, span.start)), limit, why_cut(span))
            full = await self._fill(page, partition, instance_id.encode(), span.end)
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error
        at, ended = page.place, not full and page.place.offset >= span.end
        message = NO_LIMIT_REACHED if ended else "there are more"
        if (page.events and page.events[0].missing_before) or (ended and not at.found):
            message = missing(page.events, why_cut(span))
        elif at.found and not at.whole:
            message = MISSING_EARLIER
        return History(
            page.events,
            partition,
            at.offset,
            complete=ended and at.whole,
            message=message,
            next=None if ended else at,
            span=(span.start, span.end),
        )

    async def first(self, partition: int, instance_id: str, life: Life, offset: int) -> FirstEvent:
        """Return the first event of a ceremony that the log has, from an offset on. Raises Unavailable."""
        try:
            span = await self._spans.find(partition, life.begun_at, life.changed_at)
            search = _Search(max(offset, span.start))
            await self._fill(search, partition, instance_id.encode(), span.end)
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error
        return FirstEvent(search.record, search.offset, span)

    async def _fill(self, page: _Page | _Search, partition: int, key: bytes, end: int) -> bool:
        """Add events until the page is full (True), the span is read, or the time is up."""
        try:
            async with self._clock.timeout(PAGE_SECONDS):
                async with aclosing(self._pieces(partition, page.offset, end)) as pieces:
                    async for records in pieces:
                        for record in records:
                            if is_event_of(record, key) and not page.take(record):
                                return True
                        page.read_to(records[-1].offset + 1)
                page.read_to(max(page.offset, end))
        except TimeoutError:
            pass  # the next page goes on from the last piece that was read to its end
        return False

    # -- records

    async def _own(self, partition: int, start: int, end: int, key: bytes) -> AsyncGenerator[Record]:
        async with aclosing(self._pieces(partition, start, end)) as pieces:
            async for records in pieces:
                for record in records:
                    if is_event_of(record, key):
                        yield record

    async def _pieces(self, partition: int, start: int, end: int) -> AsyncGenerator[Sequence[Record]]:
        """Iterate over the records of [start, end), one piece in a turn."""
        async for records in self._log.read(self._topic, partition, start, end):
            for begin in range(0, len(records), RECORDS_PER_TURN):
                yield records[begin : begin + RECORDS_PER_TURN]
                await self._turns.next()


def why_cut(span: Span) -> str:
    """Return why the log does not have the first events of a ceremony."""
    return "the log keeps events for 30 days" if span.trimmed else "it was restored, or its log was lost"


def missing(events: Sequence[HistoryEvent], reason: str) -> str:
    """Return which events the log does not have, and why, for a ceremony whose first event was not found."""
    since = f"before {events[0].at} " if events else ""
    return f"its events {since}are not in the log: {reason}"
