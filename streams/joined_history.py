"""Joins the history in the log with a copy beside it, which has the events that the log has deleted.

The log is asked first. Where its first event of a ceremony is not the ceremony's own first one, the older ones come
from the copy, on pages of their own, then those of the log. Each event names its source, and the first one behind a
hole says why events may be missing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ports.clock import Clock
from ports.history import CopiedEvent, HistoryCopy, HistoryEvent
from streams.api import History, HistoryPlace
from streams.copied_events import DROPPED, CopiedPart, Cut, hole, marked, older_missing, seam
from streams.copy_reader import CopyReader
from streams.event_records import STARTED, event_of, order_of
from streams.history import LARGEST_ANSWER_BYTES, HistoryReader, Life, missing, why_cut


class JoinedHistory:
    """Reads histories of one topic, and of its copy where there is one."""

    def __init__(self, reader: HistoryReader, copy: HistoryCopy | None, clock: Clock) -> None:
        self._reader = reader
        self._copies = None if copy is None else CopyReader(copy, clock)

    # -- all events, in pages

    async def page(self, partition: int, instance_id: str, limit: int, life: Life, place: HistoryPlace) -> History:
        """Return the events from a place on, at most `limit`, oldest first. Raises Unavailable."""
        if (copies := self._copies) is None or place.joined:
            return await self._reader.page(partition, instance_id, limit, life, place)
        first = await self._reader.first(partition, instance_id, life, place.offset)
        place = place._replace(offset=first.offset)
        span = first.span.start, first.span.end
        if not first.searched:
            return _more([], partition, place, span, "there are more")
        joined = place._replace(joined=True)
        if first.is_beginning:
            return await self._reader.page(partition, instance_id, limit, life, joined)
        cut = Cut(None if first.record is None else event_of(first.record), span[0], why_cut(first.span))
        part = CopiedPart(cut.first, limit, LARGEST_ANSWER_BYTES)
        await copies.oldest(part, partition, instance_id, place.copied)
        if part.events:
            shown = marked(part.events, _missing_before(place, part, cut, copies.copy))
            return _more(shown, partition, _behind(place, shown, part.events), span, _message(shown, copies.copy))
        gap = seam(part.before, part, cut, copies.copy)
        found = await self._reader.page(
            partition, instance_id, limit, life, joined._replace(whole=place.whole and not gap)
        )
        if found.next is not None and not found.events:
            return replace(found, next=place)  # the time was up before the first event, which tells the gap
        return _rest(found, gap, copies.copy) if gap or place.copied else found

    # -- the newest events

    async def newest(self, partition: int, instance_id: str, limit: int, life: Life) -> History:
        """Return the newest `limit` events, oldest first. Raises Unavailable."""
        found = await self._reader.newest(partition, instance_id, limit, life)
        room = limit - len(found.events)
        if (copies := self._copies) is None or not found.cut_off or not room:
            return found
        cut = Cut(next(iter(found.events), None), found.stopped_at, found.cut_off)
        size = sum(len(event.payload) for event in found.events)
        part = CopiedPart(cut.first, room, LARGEST_ANSWER_BYTES - size)
        await copies.newest(part, partition, instance_id)
        gap = seam(part.events[-1] if part.events else None, part, cut, copies.copy)
        if not part.events:
            return _rest(found, gap, copies.copy)
        has_all = part.events[0].number == part.extent.first
        older = marked(part.events, older_missing(part.events[0], cut, copies.copy) if has_all else "")
        later = [event._replace(missing_before="" if index else gap) for index, event in enumerate(found.events)]
        events = [*older, *later]
        if not has_all:
            message = part.trouble or f"there are older ones: at most {limit} are shown, and 3 MiB"
            return replace(found, events=events, message=message)
        complete = not gap and not any(event.missing_before for event in events)
        return replace(found, events=events, complete=complete, message=_message(events, copies.copy, gap))


def _more(
    events: Sequence[HistoryEvent], partition: int, place: HistoryPlace, span: tuple[int, int], message: str
) -> History:
    """Return a page that is not the last one."""
    return History(events, partition, place.offset, complete=False, message=message, next=place, span=span)


def _missing_before(place: HistoryPlace, part: CopiedPart, cut: Cut, copy: HistoryCopy) -> str:
    """Return why events may be missing before the first one of a page of the copy."""
    first = part.events[0]
    if not place.copied:
        return older_missing(first, cut, copy)
    return DROPPED if part.before is None else hole(part.before.event.effect_id, first.event, lost=first.lost_before)


def _behind(place: HistoryPlace, shown: Sequence[HistoryEvent], events: Sequence[CopiedEvent]) -> HistoryPlace:
    """Return the place behind the events that a page shows."""
    whole = (place.whole or not place.copied) and not any(event.missing_before for event in shown)
    behind = place.after(place.offset, order_of(shown[-1].effect_id), whole=whole)
    return behind._replace(copied=events[-1].number)


def _message(events: Sequence[HistoryEvent], copy: HistoryCopy, gap: str = "") -> str:
    """Return the message of an answer that has events of the copy."""
    for event in events:
        if event.missing_before:
            return f"events before {event.at} may be missing: {event.missing_before}"
    if gap:
        return f"its newest events may be missing: {gap}"
    return f"all that the log and {copy.name} have of it" if events[0].subject == STARTED else ""


def _rest(found: History, gap: str, copy: HistoryCopy) -> History:
    """Return the first answer of the log behind events of the copy, or without any, with the reason of a gap."""
    if not gap:
        done = f"all that the log and {copy.name} have of it"
        return replace(found, message=done) if found.complete else found
    if not found.events:
        return replace(found, complete=False, message=missing([], gap))
    first, *others = found.events
    return replace(found, events=[first._replace(missing_before=gap), *others], message=missing(found.events, gap))
