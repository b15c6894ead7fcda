"""Reads the events that a copy has before those of the log, a piece at a time, in bounded time."""

from __future__ import annotations

from collections.abc import Awaitable

from ports.clock import Clock
from ports.errors import Unreachable
from ports.history import HistoryCopy
from streams.copied_events import CopiedPart

# A copy that is away or slow delays an answer by no more than this.
COPY_SECONDS = 1.0
# Events that are read at a time.
PIECE_EVENTS = 100


class CopyReader:
    """Reads one copy. An error is noted in the part that is read; the events before it stay in it."""

    def __init__(self, copy: HistoryCopy, clock: Clock) -> None:
        self.copy = copy
        self._clock = clock

    async def oldest(self, part: CopiedPart, partition: int, instance_id: str, last: int) -> None:
        """Add events behind the one with this number, oldest first, until there is no room, or the log goes on."""
        await self._bounded(part, self._upwards(part, partition, instance_id, last))

    async def newest(self, part: CopiedPart, partition: int, instance_id: str) -> None:
        """Add the newest events before those of the log, as many as there is room for."""
        await self._bounded(part, self._downwards(part, partition, instance_id))
        part.events.reverse()

    async def _bounded(self, part: CopiedPart, reading: Awaitable[None]) -> None:
        try:
            async with self._clock.timeout(COPY_SECONDS):
                await reading
        except TimeoutError:
            part.trouble = f"{self.copy.name} did not answer within {COPY_SECONDS:g} s"
        except Unreachable as error:
            part.trouble = f"{self.copy.name} could not be asked ({error.reason})"

    async def _upwards(self, part: CopiedPart, partition: int, instance_id: str, last: int) -> None:
        part.extent = await self.copy.extent(instance_id, partition)
        number = max(last, part.extent.first)
        while number <= part.extent.last:
            for one in await self.copy.events(instance_id, number, number + PIECE_EVENTS - 1):
                if one.number == last:
                    part.before = one
                elif part.is_older(one) and part.has_room(one):
                    part.events.append(one)
                else:
                    return
            number += PIECE_EVENTS

    async def _downwards(self, part: CopiedPart, partition: int, instance_id: str) -> None:
        part.extent = await self.copy.extent(instance_id, partition)
        number = part.extent.last
        while number >= part.extent.first:
            first = max(part.extent.first, number - PIECE_EVENTS + 1)
            for one in reversed(await self.copy.events(instance_id, first, number)):
                if part.is_older(one):
                    if not part.has_room(one):
                        return
                    part.events.append(one)
            number = first - 1
