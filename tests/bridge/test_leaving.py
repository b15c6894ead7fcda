"""Followers leave their groups in time, with their batches finished or dropped, and leave no task behind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from bridge.clock import HostClock
from bridge.leaving import leave

CLOCK = HostClock()
LONG = 60.0


class Following:
    """Implements `Follower`; its stop waits for the batch in hand, and then for its group."""

    fresh = True
    places: Mapping[int, int] = {}

    def __init__(self, group: asyncio.Event | None = None) -> None:
        self.batch = asyncio.create_task(asyncio.sleep(LONG))
        self._group = group
        self.stopped = False

    def seek(self, partition: int, offset: int) -> None:
        raise AssertionError("nobody seeks")

    async def stop(self) -> None:
        await asyncio.wait({self.batch})
        if self._group is not None:
            await self._group.wait()
        self.stopped = True


async def test_batches_that_take_too_long_are_dropped_and_every_follower_leaves() -> None:
    following = [Following(), Following()]
    await leave(following, [one.batch for one in following], CLOCK, 0.01)
    assert all(one.stopped and one.batch.cancelled() for one in following)


async def test_followers_leave_at_the_same_time() -> None:
    """One whose group does not answer keeps no other waiting."""
    group = asyncio.Event()
    waiting, other = Following(group), Following()
    for one in (waiting, other):
        one.batch.cancel()
    leaving = asyncio.create_task(leave([waiting, other], [], CLOCK, LONG))
    while not other.stopped:
        await asyncio.sleep(0)
    assert not waiting.stopped
    group.set()
    await leaving
    assert waiting.stopped


async def test_a_stop_that_is_cut_off_drops_the_batches_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    following = Following()
    leaving = asyncio.create_task(leave([following], [following.batch], CLOCK, LONG))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert following.batch.cancelled()
    assert asyncio.all_tasks() == before


async def test_the_failure_of_a_stop_is_raised() -> None:
    class Failing(Following):
        async def stop(self) -> None:
            raise OSError("no socket")

    following = Failing()
    with pytest.raises(OSError, match="no socket"):
        await leave([following], [], CLOCK, LONG)
    following.batch.cancel()
