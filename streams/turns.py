"""Shares the event loop between heavy requests: all callers together do one piece of heavy work in a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TypeVar

from ports.clock import Clock

Result = TypeVar("Result")


class Turns:
    """Hands out turns in the order in which they were asked for, so that no request waits for another one's end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = asyncio.Lock()

    async def next(self) -> None:
        """Return in a later turn of the loop, in which nobody else got one."""
        async with self._next:
            await self._clock.sleep(0)

    async def run(self, pieces: Generator[None, None, Result]) -> Result:
        """Run work that yields after each piece, and return its result."""
        try:
            while True:
                next(pieces)
                await self.next()
        except StopIteration as end:
            result: Result = end.value
            return result
