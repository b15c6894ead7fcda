"""Shares the event loop between heavy requests: at most one piece of heavy work in a turn of the loop, whoever asks.

After pieces of more than a millisecond together heavy work rests for as long as they took, so that at least half of the
time is left to all other calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TypeVar

from ports.clock import Clock

# Less work needs no rest after it; a rest is never longer than LONGEST_REST_SECONDS.
SHORT_SECONDS, LONGEST_REST_SECONDS = 0.001, 0.05

Result = TypeVar("Result")


class Turns:
    """Hands out turns in the order in which they were asked for, so that no request waits for another one's end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = asyncio.Lock()
        self._ended_at = 0.0
        self._owed_seconds = 0.0
        """The time of the pieces so far, less the time between them."""

    def owe(self, seconds: float) -> None:
        """Count work that was done, or is now, outside of any turn."""
        now = self._clock.monotonic()
        self._owed_seconds = max(self._owed_seconds - (now - self._ended_at), 0.0) + seconds
        self._ended_at = now

    async def next(self) -> None:
        """Return in a later turn of the loop, in which nobody else got one."""
        async with self._next:
            await self._clock.sleep(0)  # the end of the last piece is noted meanwhile
            owed = self._owed_seconds - (self._clock.monotonic() - self._ended_at)
            self._owed_seconds = max(owed, 0.0)
            if owed > SHORT_SECONDS:
                self._owed_seconds = 0.0
                await self._clock.sleep(min(owed, LONGEST_REST_SECONDS))
            # Runs once the piece has ended: the caller works on until it waits.
            asyncio.get_running_loop().call_soon(self._ended, self._clock.monotonic())

    def _ended(self, began: float) -> None:
        self._ended_at = self._clock.monotonic()
        self._owed_seconds += self._ended_at - began

    async def run(self, pieces: Generator[None, None, Result]) -> Result:
        """Run work that yields after each piece, and return its result."""
        try:
            while True:
                next(pieces)
                await self.next()
        except StopIteration as end:
            result: Result = end.value
            return result
