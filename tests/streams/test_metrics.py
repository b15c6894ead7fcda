"""Metrics of checkpoints and recoveries."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from streams.metrics import Metrics


def test_checkpoints_and_recoveries_are_counted_with_their_rows_and_seconds() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.saved(500, 70_000, 0.02)
    metrics.saved(0, 0, 0.01)
    metrics.recovered(25_000, 0.25)
    said = registry.get_sample_value
    assert said("ceremony_checkpoint_seconds_count") == 2
    assert said("ceremony_checkpoint_seconds_sum") == 0.03
    assert said("ceremony_checkpoint_rows_total") == 500
    assert said("ceremony_checkpoint_bytes_total") == 70_000
    assert said("ceremony_recovery_seconds_bucket", {"le": "0.25"}) == 1
    assert said("ceremony_recovery_last_seconds") == 0.25
    assert said("ceremony_recovery_rows_total") == 25_000
