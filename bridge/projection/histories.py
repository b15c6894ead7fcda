"""The read model of histories: the newest events of each ceremony, from the topic `events`, in one store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bridge.projection.model import Move, ReadModel
from bridge.projection.store import PlacedStore
from ports.clock import Clock
from ports.history import HistoryEvent
from ports.log import Record
from ports.redaction import Redactor
from streams import topics
from streams.envelope import redacted_envelopes
from streams.event_records import event_of, header

# Records that are made into events between two turns of the loop.
RECORDS_PER_TURN = 50


class PlacedEvent(NamedTuple):
    """One event with the offset of its record in `events`."""

    offset: int
    event: HistoryEvent


# Events by instance id, each ceremony's in their order.
Appended = Mapping[str, Sequence[PlacedEvent]]


@dataclass(frozen=True, slots=True)
class HistoryWrite:
    """One atomic change of a store: events of one partition, and the place that it then has."""

    move: Move
    events: Appended
    """Each is appended, unless the store has it or has dropped it; in a rebuild it replaces the one that is there."""


class HistoryStore(PlacedStore, Protocol):
    """A store of histories."""

    async def append(self, write: HistoryWrite) -> str:
        """Apply a write, and return its place; where the stored place is another one, return that, empty for none."""


class HistoryModel(ReadModel[Appended]):
    """The histories of one store, redacted as at every exit."""

    loses_records = True

    def __init__(self, store: HistoryStore, redactor: Redactor, clock: Clock, *, prefix: str) -> None:
        super().__init__(
            store, topics.prefixed(prefix, topics.EVENTS), topics.prefixed(prefix, f"projector.{store.name}")
        )
        self._histories = store
        self._redactor = redactor
        self._clock = clock

    async def changes(self, records: Sequence[Record]) -> Appended:
        """Return the events of records. They were redacted as they were written, but for those of an older release."""
        found: dict[str, list[PlacedEvent]] = {}
        for begin in range(0, len(records), RECORDS_PER_TURN):
            piece = [one for one in records[begin : begin + RECORDS_PER_TURN] if one.key and is_event(one)]
            values = redacted_envelopes([one.value or b"" for one in piece], self._redactor)
            for record, value in zip(piece, values, strict=True):
                instance_id = (record.key or b"").decode(errors="replace")
                found.setdefault(instance_id, []).append(PlacedEvent(record.offset, event_of(record, value)))
            await self._clock.sleep(0)
        return found

    def nothing(self) -> Appended:
        return {}

    async def write(self, move: Move, changes: Appended) -> str:
        return await self._histories.append(HistoryWrite(move, changes))

    def count(self, changes: Appended) -> int:
        return sum(map(len, changes.values()))


def is_event(record: Record) -> bool:
    return bool(header(record, topics.EFFECT_ID))
