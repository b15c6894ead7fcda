"""The span of a partition of `events` that can hold the events of one ceremony, found by time in few reads."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec

from ports.log import Log

# Clocks of brokers differ by at most this much.
SLACK_MS = 60_000
# Records between two looks for the end of the span, doubled with each look.
FIRST_STEP_RECORDS = 32_000


class Span(NamedTuple):
    """Offsets [start, end)."""

    start: int
    end: int
    trimmed: bool
    """True where the log has deleted records that could belong to it."""


class _Dated(msgspec.Struct):
    timestamp: str


_decode = msgspec.json.Decoder(_Dated).decode


class HistorySpans:
    """Finds spans. Methods raise LogUnavailable."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log = log
        self._topic = topic

    async def find(self, partition: int, begun_at: int, changed_at: int) -> Span:
        """Return the span of a ceremony that began and last changed at these times (ms, of its commands).

        No event is appended before its command, but it may be appended long after it: a worker that was down folds
        late. So the end is found by the times inside the events, which are those of their commands.
        """
        start, end = (await self._log.ends(self._topic))[partition]
        first = min(max(await self._log.offset_at(self._topic, partition, begun_at - SLACK_MS), start), end)
        trimmed = first == start and start > 0
        return Span(first, await self._end(partition, first, end, changed_at), trimmed)

    async def _end(self, partition: int, first: int, end: int, changed_at: int) -> int:
        """Return an offset before which stands every event of a command up to `changed_at`."""
        last = changed_at + SLACK_MS
        low = min(max(await self._log.offset_at(self._topic, partition, changed_at - SLACK_MS), first), end)
        step = FIRST_STEP_RECORDS
        while low + step < end and not await self._is_later(partition, low + step, last):
            low, step = low + step, step * 2
        return min(low + step, end)

    async def _is_later(self, partition: int, offset: int, at: int) -> bool:
        """Return whether the event at this offset comes from a command after `at`; False where it does not tell.

        Commands are folded in order, so every event of an older command was first written before it.
        """
        async for records in self._log.read(self._topic, partition, offset, offset + 1):
            for record in records:
                try:
                    moment = datetime.fromisoformat(_decode(record.value or b"").timestamp)
                except (msgspec.DecodeError, ValueError):
                    return False
                return moment.tzinfo is not None and moment.timestamp() * 1000 > at
        return False
