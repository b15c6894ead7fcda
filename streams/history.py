"""Reads the history of one ceremony out of the topic `events`: its newest events, or all of them in pages.

A partition may hold millions of events, and the log has no index by ceremony. So only the span between the ceremony's
start and its last change is read (`HistorySpans`), a piece in each turn of the event loop, and each call is bounded by
events, bytes and seconds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from ports.clock import Clock
from ports.log import Log, LogUnavailable, Record
from streams import topics
from streams.api import History, HistoryEvent, HistoryPlace, Unavailable
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
STARTED = b"ceremony.started"
NO_LIMIT_REACHED = "all that the log has of it"


class Life(NamedTuple):
    """The times between which a ceremony has caused events, in milliseconds."""

    begun_at: int
    changed_at: int


class _ShownEnvelope(msgspec.Struct):
    timestamp: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    metadata: msgspec.Raw = msgspec.Raw(b"{}")


_decode = msgspec.json.Decoder(_ShownEnvelope).decode


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
            self.begun = self.begun or _begins(record)
        return True

    @property
    def oldest(self) -> int:
        """Offset of the oldest event found."""
        return next(reversed(self._seen.values())).offset

    def events(self) -> list[HistoryEvent]:
        return [event_of(record) for record in reversed(self._seen.values())]


class _Page:
    """The events of one page of a whole history, oldest first."""

    def __init__(self, place: HistoryPlace, limit: int) -> None:
        self.place = place
        """The place behind the events of this page."""
        self.events: list[HistoryEvent] = []
        self._limit = limit
        self._size = 0
        self._seen: set[str] = set()

    def take(self, record: Record) -> bool:
        """Add one event of the ceremony; return False, and add nothing, where the page is full."""
        effect_id = header(record, topics.EFFECT_ID)
        order = order_of(effect_id)
        if effect_id in self._seen or (order is not None and self.place.passed(order)):
            return True  # written again after a crash
        size = len(record.value or b"")
        if len(self.events) >= self._limit or (self.events and self._size + size > LARGEST_ANSWER_BYTES):
            return False
        whole = self.place.whole if self.place.found else _begins(record)
        self.events.append(event_of(record))
        self._seen.add(effect_id)
        self._size += size
        self.place = self.place.after(record.offset + 1, order, whole=whole)
        return True

    def read_to(self, offset: int) -> None:
        """Note that everything before this offset was read."""
        self.place = self.place._replace(offset=offset)


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
        message = NO_LIMIT_REACHED if found.begun else missing(events, span)
        return History(events, partition, stopped, complete=found.begun, message=message)

    # -- all events, in pages

    async def page(self, partition: int, instance_id: str, limit: int, life: Life, place: HistoryPlace) -> History:
        """Return the events from a place on, at most `limit`, oldest first. Raises Unavailable."""
        try:
            span = await self._spans.find(partition, life.begun_at, life.changed_at)
            page = _Page(place._replace(offset=max(place.offset, span.start)), limit)
            full = await self._fill(page, partition, instance_id.encode(), span.end)
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error
        at, ended = page.place, not full and page.place.offset >= span.end
        cut = (ended and not at.found) or (at.found and not at.whole)
        return History(
            page.events,
            partition,
            at.offset,
            complete=ended and at.whole,
            message=missing(page.events, span) if cut else NO_LIMIT_REACHED if ended else "there are more",
            next=None if ended else at,
            span=(span.start, span.end),
        )

    async def _fill(self, page: _Page, partition: int, key: bytes, end: int) -> bool:
        """Add events until the page is full (True), the span is read, or the time is up."""
        try:
            async with self._clock.timeout(PAGE_SECONDS):
                async with aclosing(self._pieces(partition, page.place.offset, end)) as pieces:
                    async for records in pieces:
                        for record in records:
                            if _is_event_of(record, key) and not page.take(record):
                                return True
                        page.read_to(records[-1].offset + 1)
                page.read_to(max(page.place.offset, end))
        except TimeoutError:
            pass  # the next page goes on from the last piece that was read to its end
        return False

    # -- records

    async def _own(self, partition: int, start: int, end: int, key: bytes) -> AsyncGenerator[Record]:
        async with aclosing(self._pieces(partition, start, end)) as pieces:
            async for records in pieces:
                for record in records:
                    if _is_event_of(record, key):
                        yield record

    async def _pieces(self, partition: int, start: int, end: int) -> AsyncGenerator[Sequence[Record]]:
        """Iterate over the records of [start, end), one piece in a turn."""
        async for records in self._log.read(self._topic, partition, start, end):
            for begin in range(0, len(records), RECORDS_PER_TURN):
                yield records[begin : begin + RECORDS_PER_TURN]
                await self._turns.next()


def missing(events: Sequence[HistoryEvent], span: Span) -> str:
    """Return which events the log does not have, and why, for a ceremony whose first event was not found."""
    since = f"before {events[0].at} " if events else ""
    kept = "the log keeps events for 30 days" if span.trimmed else "it was restored, or its log was lost"
    return f"its events {since}are not in the log: {kept}"


def order_of(effect_id: str) -> tuple[int, int, int] | None:
    """Return fold, version and ordinal of `<instance>/<version>/<ordinal>@<fold>`; None for an id of another form.

    Within one fold number, events of a ceremony are written in this order; after a crash some are written again.
    """
    rest, _, ordinal = effect_id.rpartition("/")
    ordinal, _, fold = ordinal.partition("@")
    version = rest.rpartition("/")[2]
    if not all(
        part.isascii() and part.isdigit() and len(part) < topics.MOST_DIGITS for part in (version, ordinal, fold)
    ):
        return None
    return int(fold), int(version), int(ordinal)


def header(record: Record, name: str) -> str:
    """Return the value of a header, "" without it."""
    return next((value.decode(errors="replace") for key, value in record.headers if key == name), "")


def _begins(record: Record) -> bool:
    return header(record, topics.SUBJECT).encode() == STARTED


def _is_event_of(record: Record, key: bytes) -> bool:
    return record.key == key and bool(header(record, topics.EFFECT_ID))


def event_of(record: Record) -> HistoryEvent:
    """Return an event for display; one that cannot be decoded shows only its headers."""
    try:
        envelope = _decode(record.value or b"{}")
    except msgspec.DecodeError:
        envelope = _ShownEnvelope()
    offset = header(record, topics.COMMAND_OFFSET)
    return HistoryEvent(
        subject=header(record, topics.SUBJECT),
        at=envelope.timestamp,
        effect_id=header(record, topics.EFFECT_ID),
        correlation_id=header(record, topics.CORRELATION_ID),
        payload=bytes(envelope.payload).decode(errors="replace"),
        metadata=bytes(envelope.metadata).decode(errors="replace"),
        partition=record.partition,
        command_offset=int(offset) if offset.isdigit() else -1,
    )
