"""The host's clock and random ids: the only module that sleeps, starts tasks, reads the time or makes random ids."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any


class HostClock:
    """Clock port on asyncio and the host's monotonic clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        return asyncio.create_task(coroutine, name=name)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[Any]:
        return asyncio.timeout(seconds)


def new_id() -> str:
    """A unique id: 32 hexadecimal digits."""
    return uuid.uuid4().hex
