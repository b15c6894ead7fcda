"""A worker measures how far its agents, its bridges and its checkpoints are behind."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from ceremony import neighbour_metrics
from ceremony.lags import EVERY_SECONDS, Lags
from ports.log import LogUnavailable
from streams.metrics import Metrics
from tests.streams.fakes import HandClock

ENDS = {
    "c.commands": [(0, 100), (40, 50)],
    "c.steps.publish": [(0, 7), (0, 7)],
    "c.events": [(0, 500), (0, 20)],
    "c.deadletters": [(0, 1), (0, 0)],
}


class EndsOnly:
    """A log that only knows its ends, and may be away."""

    def __init__(self) -> None:
        self.away = False

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        if self.away:
            raise LogUnavailable("log_unavailable", "away")
        return ENDS[topic]


def part(topic: str, number: int, position: int, age: float = 0.0, *, stateful: bool = False) -> Any:
    spec = SimpleNamespace(topic=topic)
    return SimpleNamespace(spec=spec, number=number, position=position, stateful=stateful, checkpoint_age_seconds=age)


class Site:
    def __init__(self) -> None:
        self.log = EndsOnly()
        self.clock = HandClock()
        self.metrics = Metrics(CollectorRegistry())
        self.parts = [
            part("c.commands", 0, 90, 0.4, stateful=True),
            part("c.commands", 1, 50, 7.5, stateful=True),
            part("c.steps.publish", 0, 9, 60.0),
        ]
        self.places = {"c.events": {0: 480, 1: 15}, "c.deadletters": {}}
        self.waiting: int | None = 3
        log: Any = self.log
        events: Any = SimpleNamespace(places=self.places)
        responses: Any = SimpleNamespace(waiting=self._waiting)
        self.lags = Lags(
            log, self.clock, self.metrics, prefix="c", parts=lambda: self.parts, events=events, responses=responses
        )

    async def _waiting(self) -> int | None:
        return self.waiting

    def lag(self, topic: str) -> float | None:
        return self.metrics.registry.get_sample_value("ceremony_consumer_lag_records", {"topic": topic})


def bridge_lag(topic: str) -> float | None:
    return REGISTRY.get_sample_value("ceremony_nats_lag_records", {"topic": topic})


async def test_the_lag_is_counted_by_topic_over_the_partitions_served_here() -> None:
    # specification 29.3
    site = Site()
    await site.lags.measure()
    assert (site.lag("commands"), site.lag("steps.publish")) == (10, 0)
    assert (bridge_lag("events"), bridge_lag("deadletters")) == (25, 0)


async def test_a_topic_that_is_served_elsewhere_now_has_no_lag_here() -> None:
    site = Site()
    await site.lags.measure()
    del site.parts[:2]
    await site.lags.measure()
    assert (site.lag("commands"), site.lag("steps.publish")) == (0, 0)


async def test_the_age_of_the_oldest_checkpoint_counts_only_partitions_with_rows() -> None:
    site = Site()
    assert site.metrics.registry.get_sample_value("ceremony_checkpoint_age_seconds") == 7.5
    site.parts.clear()
    assert site.metrics.registry.get_sample_value("ceremony_checkpoint_age_seconds") == 0


async def test_it_measures_on_while_the_log_or_nats_is_away() -> None:
    site = Site()
    site.log.away = True
    task = site.clock.spawn(site.lags.run(), name="lags")
    await site.clock.advance(EVERY_SECONDS)
    assert site.lag("commands") is None
    assert REGISTRY.get_sample_value("ceremony_nats_responses_waiting") == 3
    site.log.away, site.waiting = False, None
    await site.clock.advance(EVERY_SECONDS)
    assert site.lag("commands") == 10
    assert REGISTRY.get_sample_value("ceremony_nats_responses_waiting") == 3
    task.cancel()


def test_a_neighbour_is_up_while_readyz_calls_it_ok() -> None:
    # specification 29.3
    states = {"log": "ok", "nats": "not connected"}
    neighbour_metrics.show(lambda: states)

    def up(name: str) -> float | None:
        return REGISTRY.get_sample_value("ceremony_neighbour_up", {"neighbour": name})

    assert (up("log"), up("nats")) == (1, 0)
    states.update(log="down", nats="ok")
    assert (up("log"), up("nats")) == (0, 1)
    neighbour_metrics.show(lambda: {"valkey": "ok"})
    assert (up("log"), up("valkey")) == (None, 1)
