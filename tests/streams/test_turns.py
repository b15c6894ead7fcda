"""Heavy work that was done elsewhere, such as sending an answer, lets the next heavy work rest as its own would."""

from __future__ import annotations

import asyncio

import pytest

from streams.turns import LONGEST_REST_SECONDS, Turns
from tests.streams.fakes import HandClock

pytestmark = pytest.mark.asyncio


async def rested(turns: Turns, clock: HandClock, seconds: float) -> bool:
    """Return whether the next turn comes within so many seconds."""
    waiting = asyncio.create_task(turns.next())
    await clock.advance(0)  # the turn of the loop for others
    await clock.advance(seconds)
    return waiting.done() or bool(waiting.cancel() and False)


async def test_work_that_is_owed_is_rested_for_also_after_a_time_without_any() -> None:
    # specification 14.20
    clock = HandClock()
    turns = Turns(clock)
    await clock.advance(1000)
    turns.owe(0.02)
    assert not await rested(turns, clock, 0.015)
    turns.owe(0.02)
    assert await rested(turns, clock, 0.02)


async def test_time_that_passes_after_it_pays_what_is_owed() -> None:
    # specification 14.20
    clock = HandClock()
    turns = Turns(clock)
    turns.owe(0.02)
    await clock.advance(0.03)
    assert await rested(turns, clock, 0)


async def test_a_rest_is_never_long() -> None:
    clock = HandClock()
    turns = Turns(clock)
    turns.owe(60)
    assert await rested(turns, clock, LONGEST_REST_SECONDS)
