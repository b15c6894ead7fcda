"""A histogram that is counted many at a time looks to Prometheus like the client's own."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from streams.histograms import BatchHistogram

BOUNDS = (0.1, 1.0, 60.0)
SEEN = (0.0, 0.1, 0.100001, 1.0, 30.0, 60.0, 61.0, 10_000.0)


def test_its_text_is_that_of_the_clients_own_histogram() -> None:
    """Bounds are inclusive, buckets add up, and no `_created` series stands beside them."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = BatchHistogram("wait_seconds", "d", ["kind"], buckets_seconds=BOUNDS, registry=ours)
    own = Histogram("wait_seconds", "d", ["kind"], buckets=BOUNDS, registry=theirs)
    for seconds in SEEN:
        histogram.of("a").add(seconds)
        own.labels("a").observe(seconds)
    lines = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == lines


def test_many_observations_are_added_at_once() -> None:
    registry = CollectorRegistry()
    histogram = BatchHistogram("wait_seconds", "d", buckets_seconds=BOUNDS, registry=registry)
    histogram.of().add(0.5, 3)
    assert registry.get_sample_value("wait_seconds_count") == 3
    assert registry.get_sample_value("wait_seconds_sum") == 1.5


def test_a_duration_below_zero_counts_as_zero() -> None:
    """Two clocks may differ; a sum that falls would look like a restart."""
    registry = CollectorRegistry()
    BatchHistogram("wait_seconds", "d", buckets_seconds=BOUNDS, registry=registry).of().add(-5)
    assert registry.get_sample_value("wait_seconds_sum") == 0
    assert registry.get_sample_value("wait_seconds_bucket", {"le": "0.1"}) == 1


def test_a_name_is_registered_once() -> None:
    registry = CollectorRegistry()
    BatchHistogram("wait_seconds", "d", buckets_seconds=BOUNDS, registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        BatchHistogram("wait_seconds", "d", buckets_seconds=BOUNDS, registry=registry)
