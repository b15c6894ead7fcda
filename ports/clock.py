"""Time and concurrency, as the engine needs them.

All code that waits, sleeps or starts a task uses this port, so that the whole engine can run under a fake clock and be
killed at every await.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Clock(Protocol):
    """Time and concurrency; the implementation on the host's clock is `bridge/clock.py`."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""

    def wall(self) -> float:
        """Seconds since the epoch, for people and for messages to other systems; never for a decision."""

    async def sleep(self, seconds: float) -> None: ...

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start a task. The caller keeps the reference and checks how the task ended."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[Any]:
        """`async with clock.timeout(s)`: raises TimeoutError when the body takes longer."""
