"""Calls to a store that are repeated until they succeed, with the state that readiness and metrics report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from bridge.projection import metrics
from bridge.projection.store import PlacedStore, StoreError
from ports.clock import Clock
from streams.outages import NeighbourOutage

# Deadline of a call; a write of a megabyte takes some hundredths of a second.
CALL_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
# What an outage of a store means.
STORE_WAITS = "its records wait in the log; no ceremony notices"
T = TypeVar("T")

log = structlog.get_logger(__name__)


class StoreCalls:
    """Makes the calls of one projector, each with a deadline."""

    def __init__(self, store: PlacedStore, clock: Clock, outage: NeighbourOutage | None = None) -> None:
        """`outage`: that of the store's server, where others use it too."""
        self._store = store
        self._clock = clock
        self._outage = outage or NeighbourOutage(store.name, clock, STORE_WAITS)
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
            self._failed(error)
            raise error from None
        except StoreError as error:
            self._failed(error)
            raise
        self._answered()
        return done

    def _failed(self, error: StoreError) -> None:
        self._failures.inc()
        self._up.set(0)
        self.state = error.reason
        self._outage.failed(error.code, error.reason)

    def _answered(self) -> None:
        if self.state != "ok":
            self._up.set(1)
            self.state = "ok"
            log.info("store_answers", store=self._store.name)
        self._outage.answered()
