"""Counts the work that is done between two turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


class LoopTurns:
    """`work` is called for each unit of work while `during` runs."""

    def __init__(self) -> None:
        self.all = 0
        """Units of all turns."""
        self.turns = [0]

    def work(self, units: int = 1) -> None:
        self.turns[-1] += units
        self.all += units

    @property
    def most(self) -> int:
        """The units of the turn with the most work."""
        return max(self.turns)

    @property
    def often(self) -> int:
        """The units of the turn with the most work after the first one, in which all callers begin."""
        busy = [units for units in self.turns if units]
        return max(busy[1:])

    async def during(self, *work: Awaitable[Any]) -> list[Any]:
        """Run all of this at once, and return the results."""
        ticking = asyncio.create_task(self._tick())
        try:
            return await asyncio.gather(*work, return_exceptions=True)
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        while True:
            self.turns.append(0)
            await asyncio.sleep(0)
