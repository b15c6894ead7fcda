"""Judges events of a copy: which of them stand before those of the log, and where some may be missing between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ports.history import CopiedEvent, CopyExtent, HistoryCopy, HistoryEvent
from streams.event_records import STARTED, order_of
from tables.fold.set_aside import VERSIONS

# Bytes of an event beside its payload and metadata.
FRAME_BYTES = 300
NOTHING = CopyExtent(1, 0, 0)
LOST = "the log had deleted some before they were copied"
RESTORED = "it was restored here, and the log before is lost with the events that were not copied yet"
DROPPED = "they were dropped while this was read"


class Cut(NamedTuple):
    """The beginning of the log within a history."""

    first: HistoryEvent | None
    """The first event that the log has; None where it has none."""
    log_start: int
    """Offset before which the log was not read."""
    reason: str
    """Why the log has none before."""


@dataclass(slots=True)
class CopiedPart:
    """Events of the copy that stand before those of the log, as far as one answer takes them."""

    first: HistoryEvent | None
    """The first event of the log."""
    limit: int
    size: int
    """Bytes that there is room for; the first event is taken whatever its size."""
    events: list[CopiedEvent] = field(default_factory=list)
    before: CopiedEvent | None = None
    """The last event of the page before, where the copy still has it."""
    same: CopiedEvent | None = None
    """The first event of the log, where the copy has it too."""
    extent: CopyExtent = NOTHING
    trouble: str = ""
    """Why the copy could not be asked."""

    def is_older(self, one: CopiedEvent) -> bool:
        """Return whether an event stands before those of the log."""
        if self.first is not None and one.event.effect_id == self.first.effect_id:
            self.same = one
        return self.first is None or is_before(one.event, self.first)

    def has_room(self, one: CopiedEvent) -> bool:
        self.size -= len(one.event.payload) + len(one.event.metadata) + FRAME_BYTES
        return len(self.events) < self.limit and (not self.events or self.size >= 0)


def is_before(event: HistoryEvent, first: HistoryEvent) -> bool:
    """Return whether an event of the copy stands before the first one of the log."""
    if event.effect_id == first.effect_id:
        return False
    mine, other = order_of(event.effect_id), order_of(first.effect_id)
    if mine is None or other is None:  # announcements have no order
        return event.at <= first.at
    # After an upgrade a new fold number repeats versions; both are events.
    return mine[0] < other[0] or mine[1:] < other[1:]


def hole(before: str, event: HistoryEvent, *, lost: bool = False) -> str:
    """Return why events may be missing between the one with the id `before` and this one; empty where none are."""
    if lost:
        return LOST
    mine, other = order_of(before), order_of(event.effect_id)
    jumped = mine is not None and other is not None and other[1] - mine[1] >= VERSIONS
    return RESTORED if jumped else ""


def older_missing(one: CopiedEvent, cut: Cut, copy: HistoryCopy) -> str:
    """Return why there are no events before the oldest one of the copy; empty where it is the ceremony's first."""
    if one.event.subject == STARTED:
        return ""
    if one.number == 1:
        return f"{cut.reason}, and {copy.name} has no older ones"
    return f"{cut.reason}, and {copy.name} the newest {copy.most:,} of a ceremony; {one.number - 1:,} are gone"


def marked(events: Sequence[CopiedEvent], before_first: str) -> list[HistoryEvent]:
    """Return events that follow each other in the copy, each with the reason to miss others before it."""
    found: list[HistoryEvent] = []
    for index, one in enumerate(events):
        reason = before_first
        if index:
            last = events[index - 1]
            dropped = one.number != last.number + 1
            reason = DROPPED if dropped else hole(last.event.effect_id, one.event, lost=one.lost_before)
        found.append(one.event._replace(missing_before=reason))
    return found


def seam(last: CopiedEvent | None, part: CopiedPart, cut: Cut, copy: HistoryCopy) -> str:
    """Return why events may be missing between the last one of the copy and the first of the log; empty if none are."""
    if part.trouble:
        return f"{cut.reason}, and {part.trouble}"
    if last is None and part.same is not None and part.same.number == part.extent.first:
        return older_missing(part.same, cut, copy)
    if last is None:
        gone = f"keeps the newest {copy.most:,} of a ceremony" if part.extent.first > 1 else "has none of them"
        return f"{cut.reason}, and {copy.name} {gone}"
    if part.same is None and part.extent.copied_to < cut.log_start:
        return f"{cut.reason}, and {copy.name} has only the events up to here"
    if cut.first is None:
        return ""
    return hole(last.event.effect_id, cut.first, lost=part.same is not None and part.same.lost_before)
