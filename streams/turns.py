"""Shares the event loop between heavy requests: at most one piece of heavy work in a turn of the loop, whoever asks.

After a piece of more than a millisecond heavy work rests for as long as the piece took, so that at least half of the
time is left to all other calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TypeVar

from ports.clock import Clock

# Pieces that take less need no rest after them; a rest is never longer than LONGEST_REST_SECONDS.
SHORT_SECONDS, LONGEST_REST_SECONDS = 0.001, 0.05

Result = TypeVar("Result")


class Turns:
    """Hands out turns in the order in which they were asked for, so that no request waits for another one's end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = asyncio.Lock()
        self._rest = 0.0

    async def next(self) -> None:
        """Return in a later turn of the loop, in which nobody else got one."""
        async with self._next:
            await self._clock.sleep(0)  # the end of the last piece is noted meanwhile
            if self._rest:
                await self._clock.sleep(self._rest)
                self._rest = 0.0
            # Runs once the piece has ended: the caller works on until it waits.
            asyncio.get_running_loop().call_soon(self._ended, self._clock.monotonic())

    def _ended(self, began: float) -> None:
        took = self._clock.monotonic() - began
        self._rest = min(took, LONGEST_REST_SECONDS) if took > SHORT_SECONDS else 0.0

    async def run(self, pieces: Generator[None, None, Result]) -> Result:
        """Run work that yields after each piece, and return its result."""
        try:
            while True:
                next(pieces)
                await self.next()
        except StopIteration as end:
            result: Result = end.value
            return result
