"""The sweep finds ceremonies that wait for nothing, counts them and names them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from streams.front import Unavailable
from streams.metrics import Metrics
from streams.sweep import NAMED, SLICE, SWEEP_SECONDS, Sweep
from tables.definition import Definition
from tables.instance import Instance, Phase, StepState, StepStatus
from tests.streams.fakes import HandClock, settle
from tests.tables.world import World, definition_of

PROBE = definition_of(
    """
inputs: {optional: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
"""
)


class Rows:
    """Stands for the engine: rows of the probe, but those of `moved` are gone when they are looked at."""

    def __init__(self, *rows: Instance) -> None:
        self.rows = list(rows)
        self.moved: set[str] = set()

    def owned(self) -> list[Instance]:
        return self.rows

    def definition_of(self, instance: Instance) -> Definition | None:
        if instance.instance_id in self.moved:
            raise Unavailable("moved")
        return PROBE if instance.definition_hash == PROBE.hash else None


def live() -> Instance:
    world = World(PROBE)
    world.start(a=1)
    return world.live


def stuck(name: str = "c1:s1") -> Instance:
    """As no fold leaves one: RUNNING, and its only step asks for nothing."""
    row = live()
    timers = {"ceremony_max": row.timers["ceremony_max"]}
    steps = {"one": StepState(status=StepStatus.COMPLETED, phase=Phase.NONE, attempt=1)}
    return replace(row, instance_id=name, steps=steps, timers=timers)


async def counted(rows: Rows) -> int:
    clock = HandClock()
    counting = asyncio.create_task(Sweep(rows, clock, Metrics(CollectorRegistry()).stuck).count())
    while not counting.done():
        await clock.advance(0)
    return counting.result()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[MutableMapping[str, Any]]]:
    """What was logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


async def test_a_ceremony_that_waits_for_something_or_has_ended_is_not_stuck() -> None:
    world = World(PROBE)
    world.start(a=1)
    world.done("one")
    assert await counted(Rows(live(), world.live)) == 0


async def test_one_that_waits_for_nothing_is_counted_and_named(quiet: list[MutableMapping[str, Any]]) -> None:
    assert await counted(Rows(live(), stuck())) == 1
    assert [(line["event"], line["instance"]) for line in quiet] == [("ceremony_stuck", "c1:s1")]


async def test_of_many_the_first_are_named(quiet: list[MutableMapping[str, Any]]) -> None:
    """The loop gets its turn in between, however many rows there are."""
    assert await counted(Rows(*(stuck(f"c{n}:s1") for n in range(2 * SLICE)))) == 2 * SLICE
    assert len(quiet) == NAMED


async def test_what_cannot_be_judged_is_not_counted() -> None:
    """Its partition went to another worker, or its definition is not to be had."""
    rows = Rows(stuck("gone:s1"), replace(stuck(), definition_hash="unknown"))
    rows.moved.add("gone:s1")
    assert await counted(rows) == 0


async def test_the_metric_follows_each_sweep() -> None:
    rows, clock, metrics = Rows(stuck()), HandClock(), Metrics(CollectorRegistry())
    sweeping = asyncio.create_task(Sweep(rows, clock, metrics.stuck).run())
    try:
        for expected in (0, 1, 0):
            await settle()
            assert metrics.registry.get_sample_value("ceremony_stuck") == expected
            if expected:
                rows.rows.clear()
            await clock.advance(SWEEP_SECONDS)
    finally:
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping
