"""The pace at which requests are refused for their size.

gRPC receives a request of 4 MB in one piece of up to 5 ms, before anybody can look at it. A client that sends the next
one as soon as the last is refused would take that from a third of all other calls.
"""

from __future__ import annotations

import asyncio

from ports.clock import Clock

REFUSAL_SECONDS = 0.1
# Refusals that may wait; beyond that they are sent at once, so that a client cannot fill the memory with waiting calls.
MOST_WAITING = 64


class RefusalPace:
    """Has these refusals wait for each other, and nobody else for them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._one = asyncio.Lock()
        self._waiting = 0

    async def next(self) -> None:
        """Return when the next refusal may be sent."""
        if self._waiting == MOST_WAITING:
            return
        self._waiting += 1
        try:
            async with self._one:
                await self._clock.sleep(REFUSAL_SECONDS)
        finally:
            self._waiting -= 1
