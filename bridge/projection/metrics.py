"""Metrics of the read models, by store."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

UP = Gauge("ceremony_projector_up", "1 while the store takes writes and answers", ["store"])
LAG_RECORDS = Gauge("ceremony_projector_lag_records", "Records of the log that the store does not have yet", ["store"])
LAG_SECONDS = Gauge("ceremony_projector_lag_seconds", "Age of the oldest record that is being written", ["store"])
ROWS = Counter("ceremony_projector_rows", "Rows or events written to the store, or removed from it", ["store"])
FAILURES = Counter("ceremony_projector_failures", "Calls to the store that failed", ["store"])
REBUILDS = Counter("ceremony_projector_rebuilds", "Partitions that were read again from their log start", ["store"])
ANNOUNCED = Counter("ceremony_dualwrite_announced", "Writes that kept failing, announced on NATS", ["store"])
