"""Calls to the Ray executor are timed by their answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from bridge.ray.timing import TimedRayExecutor
from ports.errors import Unreachable
from ports.ray import RayAnswer
from tests.streams.fakes import HandClock


def timed(answer: str) -> float:
    return REGISTRY.get_sample_value("ceremony_ray_call_seconds_sum", {"answer": answer}) or 0


@pytest.mark.parametrize("status", ["submitted", "failed"])
async def test_a_call_is_timed_by_its_answer(status: Any) -> None:
    # specification 29.3
    clock = HandClock()

    class Executor:
        async def execute(self, task: Any) -> RayAnswer:
            clock.seconds += 3
            return RayAnswer(status)

    before, task = timed(status), Any
    assert (await TimedRayExecutor(Executor(), clock).execute(task)).status == status  # type: ignore[arg-type]  # it is only handed on
    assert timed(status) == before + 3


async def test_an_executor_out_of_reach_is_timed_too() -> None:
    clock = HandClock()

    class Executor:
        async def execute(self, task: Any) -> RayAnswer:
            clock.seconds += 10
            raise Unreachable("ray_executor", "no answer")

    before, task = timed("unreachable"), Any
    with pytest.raises(Unreachable):
        await TimedRayExecutor(Executor(), clock).execute(task)  # type: ignore[arg-type]  # as above
    assert timed("unreachable") == before + 10


@pytest.mark.parametrize("error", [asyncio.CancelledError, ValueError])
async def test_a_call_without_an_answer_is_not_timed(error: type[BaseException]) -> None:
    clock = HandClock()

    class Executor:
        async def execute(self, task: Any) -> RayAnswer:
            clock.seconds += 10
            raise error

    before, task = timed("unreachable"), Any
    with pytest.raises(error):
        await TimedRayExecutor(Executor(), clock).execute(task)  # type: ignore[arg-type]  # as above
    assert timed("unreachable") == before
