"""Retention over the whole engine: a finished ceremony becomes a stub after 30 days, and is gone a year later."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.clock import HostClock
from ceremony.worker import Worker
from tables.fold.retention import UNTIL_STUB_MS, UNTIL_TOMBSTONE_MS
from tables.instance import Instance
from tests.bridge.grpc.world import refused
from tests.e2e.world import World, until

MINUTE = 60.0
NAME = "C-kept"
STARTED: dict[str, Any] = {"payload": {"a": 1}}


class LeapingClock(HostClock):
    """The host's clock with an offset that tests increase. Sleeps take as long as before."""

    def __init__(self) -> None:
        self._leapt = 0.0

    def leap(self, seconds: float) -> None:
        self._leapt += seconds

    def monotonic(self) -> float:
        return time.monotonic() + self._leapt

    def wall(self) -> float:
        return time.time() + self._leapt


@pytest.fixture
def clock() -> LeapingClock:
    return LeapingClock()


@pytest.fixture
async def world(tmp_path: Path, clock: LeapingClock) -> AsyncIterator[World]:
    with mock.patch("tests.e2e.world.Worker", partial(Worker, clock=clock)):
        async with World(tmp_path, f"sqlite:///{tmp_path}/log.db") as made:
            yield made


def row(world: World, instance_id: str) -> Instance | None:
    return world.worker.engine.reads.get(instance_id)


async def start(world: World, inputs: dict[str, Any] = STARTED) -> str:
    return await world.client.start("merge_chain", ceremony_id=NAME, story_id="S1", requested_by="anna", inputs=inputs)


async def completed(world: World) -> str:
    instance_id = await start(world)

    def done() -> bool:
        found = row(world, instance_id)
        return found is not None and found.status == "COMPLETED"

    await until(done, "the ceremony is completed")
    return instance_id


async def stub_of(world: World, clock: LeapingClock, instance_id: str) -> Instance:
    clock.leap(UNTIL_STUB_MS / 1000 + MINUTE)

    def stub() -> Instance | None:
        found = row(world, instance_id)
        return found if found is not None and found.expired else None

    found = await until(stub, "the row is a stub")
    assert isinstance(found, Instance)
    return found


async def test_a_repeated_start_is_answered_from_the_stub(world: World, clock: LeapingClock) -> None:
    """The same start is accepted and starts nothing; a different one is refused. A restart changes neither."""
    # specification 21.1
    instance_id = await completed(world)
    stub = await stub_of(world, clock, instance_id)
    assert not stub.steps and not stub.inputs
    for _ in range(2):
        assert await start(world) == instance_id
        with refused("ALREADY_EXISTS", "already_exists"):
            await again(world, {"a": 2})
        assert row(world, instance_id) == stub
        await world.restart_worker()
    assert row(world, instance_id) == stub


async def test_a_year_later_nothing_is_left_and_the_id_is_free(world: World, clock: LeapingClock) -> None:
    """The changelog holds its tombstone, so a restarted worker does not know it either."""
    # specification 21.1
    instance_id = await completed(world)
    await stub_of(world, clock, instance_id)
    clock.leap(UNTIL_TOMBSTONE_MS / 1000 + MINUTE)
    await until(lambda: row(world, instance_id) is None, "the row is gone")
    assert await world.client.get(instance_id) is None
    await world.restart_worker()
    assert row(world, instance_id) is None
    assert await completed(world) == instance_id


async def again(world: World, payload: dict[str, Any]) -> Any:
    """Start the same id with another payload, without the client, which hides the status."""
    request = pb.StartPlanningCeremonyRequest(
        ceremony_id=NAME, story_id="S1", definition_name="merge_chain", requested_by="anna"
    )
    request.inputs_json.update({"payload": payload})
    return await world.stub.StartPlanningCeremony(request)
