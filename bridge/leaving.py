"""Leaves the groups of followers: their batches in hand are finished in time, or dropped for the next owner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable

from ports.clock import Clock
from ports.log import Follower

CANCEL_AGAIN_SECONDS = 0.02


async def leave(
    followers: Iterable[Follower], work: Collection[asyncio.Task[None]], clock: Clock, seconds: float
) -> None:
    """Stop the followers at the same time. After `seconds` their batches in hand, the tasks of `work`, are cancelled.

    So they are when this call is cut off, and it still ends only when the followers have: no task is left behind.
    Raises what the stop of a follower raises.
    """
    leaving = [clock.spawn(follower.stop(), name="leave") for follower in followers]
    if not leaving:
        return
    try:
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(seconds):
                await asyncio.wait(leaving)
    except asyncio.CancelledError:
        for task in leaving:
            task.cancel()
        raise
    finally:
        while not all(task.done() for task in leaving):
            for task in tuple(work):
                task.cancel()  # again and again: a call of redis-py that just ends can swallow a cancellation
            await clock.sleep(CANCEL_AGAIN_SECONDS)
    for task in leaving:
        task.result()
