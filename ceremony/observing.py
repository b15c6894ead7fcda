"""Keeps an observer at work: an error in it is logged, and ends neither the observer nor the worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from ports.clock import Clock

# Between an error and the next attempt.
PAUSE_SECONDS = 5.0

log = structlog.get_logger(__name__)


async def observing(name: str, clock: Clock, run: Callable[[], Awaitable[None]]) -> None:
    """Run an observer, again after each error. Errors of one type are logged once."""
    logged: set[type[Exception]] = set()
    while True:
        try:
            await run()
        except MemoryError:
            raise
        except Exception as error:
            if type(error) not in logged:
                logged.add(type(error))
                log.exception("observer_failed", observer=name, hint="it goes on")
        else:
            return
        await clock.sleep(PAUSE_SECONDS)
