"""Live ceremonies count from when their start was due, and one that did not end counts with its whole wait."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from tests.benchmarks import figures, live_figures
from tests.benchmarks.bench import Found
from tests.benchmarks.layouts import ONE
from tests.benchmarks.live import LiveRun
from tests.benchmarks.live_load import (
    ASKED,
    COMPLETED,
    EXECUTED,
    PUBLISHED,
    STARTED,
    TO_NATS,
    Life,
    LiveLoad,
    Measured,
    Options,
    Times,
    times,
)
from tests.benchmarks.plan import parsed, plan_of

OPTIONS = Options(addresses=[], nats="", name="n", rate=10, seconds=2, skip_seconds=1, wait_seconds=1)
WALL = 1_700_000_000.0


def event(subject: str, instance_id: str, at: float) -> object:
    stamped = datetime.fromtimestamp(at, UTC).isoformat()
    envelope = {"timestamp": stamped, "correlation_id": instance_id, "payload": {}}
    return SimpleNamespace(subject=subject, data=json.dumps(envelope).encode())


def load_with(**lives: float) -> LiveLoad:
    """A load whose ceremonies were due at these times; those from WALL on count."""
    load = LiveLoad(OPTIONS, [])
    load.counts_from = WALL
    load.lives = {name: Life(due) for name, due in lives.items()}
    return load


async def test_hops_are_the_times_between_the_first_events_of_each_kind() -> None:
    load = load_with(one=WALL)
    for subject, at in ((STARTED, 0.5), (EXECUTED, 0.6), (EXECUTED, 0.9), (COMPLETED, 1.0)):
        await load.on_event(event(subject, "one", WALL + at))  # type: ignore[arg-type]
    found = load.measured(WALL + 5)
    assert found.hops[ASKED].p50_ms == pytest.approx(100)
    assert PUBLISHED not in found.hops, "no gate was decided"
    assert found.hops[TO_NATS].p50_ms > 0
    assert (found.due, found.completed) == (1, 1)


async def test_a_ceremony_that_did_not_end_counts_with_its_wait_and_an_early_one_not_at_all() -> None:
    load = load_with(early=WALL - 1, late=WALL + 1)
    found = load.measured(WALL + 16)
    assert (found.due, found.completed) == (1, 0)
    assert found.whole.p99_ms == pytest.approx(15_000)


def run(rate: float, p99_ms: float, completed: int = 40) -> LiveRun:
    measured = Measured(
        began=0,
        ended=4,
        due=40,
        completed=completed,
        whole=Times(50, p99_ms),
        hops={ASKED: times([0.02])},
        failed={},
        cpu_seconds=0.1,
    )
    return LiveRun("Kafka", ONE, rate, measured, {"worker 1": 20.0, "kafka": 5.0, "agents": 4.0, "callers": 2.0}, 0.0)


@pytest.mark.parametrize(("one", "kept_up"), [(run(40, 990), True), (run(40, 1010), False), (run(40, 90, 39), False)])
def test_a_rate_is_kept_up_when_all_ended_and_the_slowest_within_a_second(one: LiveRun, kept_up: bool) -> None:  # noqa: FBT001
    assert one.kept_up is kept_up


def test_the_highest_rate_kept_up_is_the_headline_and_agents_are_not_the_engine() -> None:
    found = Found(live=[run(10, 90), run(40, 500), run(100, 3000)])
    summary = figures.summary(found, plan_of(parsed(["--live", "100,10,40"], "")), (0.0,))
    assert summary["live_kept_up_per_s"] == {"Kafka, 1 worker": 40}
    assert summary["live"][0]["engine_cpu_ms"] == 25
    assert figures.line(found, summary).startswith("live backlog reviews kept up 40/s (Kafka, 1 worker)")
    first, *others = live_figures.rows(found.live)
    assert (first.what, first.figure) == ("live backlog reviews, Kafka, 1 worker: kept up, starts/s", "40.0")
    assert [row.figure for row in others] == ["50 / 90", "50 / 500", "50 / 3,000"]


def test_another_log_has_a_headline_of_its_own() -> None:
    found = live_figures.summary([run(10, 90), replace(run(40, 90), log="embedded")])
    assert found["live_kept_up_per_s"] == {"Kafka, 1 worker": 10, "embedded, 1 worker": 40}


def test_rates_are_run_in_rising_order() -> None:
    assert plan_of(parsed(["--live", "100,10"], "")).live == [10, 100]
