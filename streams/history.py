"""Reads the newest events of one ceremony back out of the topic `events`, in bounded pieces from the end."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ports.clock import Clock
from ports.log import Log, LogUnavailable, Record
from streams import topics
from streams.api import History, HistoryEvent, Unavailable

READ_SECONDS = 10.0
# Bytes of all envelopes in one answer.
LARGEST_ANSWER_BYTES = 3 * 1024 * 1024
# Records read at a time, doubled with each piece: a new ceremony is found at once, an old one in few reads.
FIRST_PIECE_RECORDS, LARGEST_PIECE_RECORDS = 1_000, 32_000
# No event of a ceremony is older than its start, except by the difference of the brokers' clocks, at most this much.
SLACK_MS = 60_000
STARTED = b"ceremony.started"


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
            self.begun = self.begun or header(record, topics.SUBJECT).encode() == STARTED
        return True

    @property
    def oldest(self) -> int:
        """Offset of the oldest event found."""
        return next(reversed(self._seen.values())).offset

    def events(self) -> list[HistoryEvent]:
        return [event_of(record) for record in reversed(self._seen.values())]


class HistoryReader:
    """Reads histories of one topic."""

    def __init__(self, log: Log, clock: Clock, topic: str) -> None:
        self._log = log
        self._clock = clock
        self._topic = topic

    async def read(self, partition: int, instance_id: str, limit: int, begun_at: int) -> History:
        """Return the newest `limit` events of a ceremony that began at `begun_at` (ms). Raises Unavailable."""
        try:
            start, end = (await self._log.ends(self._topic))[partition]
            found, stopped = _NewestEvents(limit), end
            try:
                async with self._clock.timeout(READ_SECONDS):
                    piece = FIRST_PIECE_RECORDS
                    while stopped > start:
                        first = max(start, stopped - piece)
                        records, oldest = await self._piece(partition, first, stopped, instance_id.encode())
                        if not found.add(records):
                            message = f"there are older ones: at most {limit} are shown, and 3 MiB"
                            return History(found.events(), partition, found.oldest, complete=False, message=message)
                        stopped = first
                        if found.begun or oldest < begun_at - SLACK_MS:
                            break
                        piece = min(piece * 2, LARGEST_PIECE_RECORDS)
            except TimeoutError:
                message = f"the time was up after {READ_SECONDS:g} s; older events were not looked at"
                return History(found.events(), partition, stopped, complete=False, message=message)
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error
        return History(found.events(), partition, stopped, complete=True, message="all that the log has of it")

    async def _piece(self, partition: int, start: int, end: int, key: bytes) -> tuple[list[Record], int]:
        """Return the ceremony's records of [start, end), and the time of the oldest record in that range."""
        found: list[Record] = []
        oldest = 0
        async for records in self._log.read(self._topic, partition, start, end):
            oldest = oldest or records[0].timestamp
            found += [record for record in records if record.key == key and header(record, topics.EFFECT_ID)]
            await self._clock.sleep(0)  # other tasks need the event loop, too
        return found, oldest


def header(record: Record, name: str) -> str:
    """Return the value of a header, "" without it."""
    return next((value.decode(errors="replace") for key, value in record.headers if key == name), "")


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
