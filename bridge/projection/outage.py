"""Calls to a store that are repeated until they succeed, with the state that readiness and metrics report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from bridge.projection import metrics
from bridge.projection.store import Store, StoreError
from ports.clock import Clock

# Deadline of a call; a write of a megabyte takes some hundredths of a second.
CALL_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
T = TypeVar("T")

log = structlog.get_logger(__name__)


class StoreCalls:
    """Makes the calls of one projector, each with a deadline."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.state = "not asked yet"
        """`ok`, or the last error."""
        self._failures = metrics.FAILURES.labels(store.name)
        self._up = metrics.UP.labels(store.name)
        self._up.set(0)

    async def until_done(
        self,
        call: Callable[[], Awaitable[T]],
        failed: Callable[[StoreError], Awaitable[None]] | None = None,
    ) -> T:
        """Repeat a call until it succeeds, with growing pauses; `failed` hears of each failure."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self.once(call)
            except StoreError as error:
                if failed is not None:
                    await failed(error)
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def once(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call. Raises StoreError."""
        try:
            async with self._clock.timeout(CALL_SECONDS):
                done = await call()
        except TimeoutError:
            error = StoreError(self._store.name, f"no answer within {CALL_SECONDS:g} s")
            self._note(error.reason)
            raise error from None
        except StoreError as error:
            self._note(error.reason)
            raise
        self._note("ok")
        return done

    def _note(self, state: str) -> None:
        if state != "ok":
            self._failures.inc()
        if (state == "ok") != (self.state == "ok"):
            self._up.set(state == "ok")
            report = log.info if state == "ok" else log.warning
            report("store_answers" if state == "ok" else "store_unavailable", store=self._store.name, reason=state)
        self.state = state
