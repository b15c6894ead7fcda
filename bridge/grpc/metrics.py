"""Metrics of the gRPC front, by method."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter

from streams.histograms import BatchHistogram

BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

CALLS = Counter(
    "ceremony_rpc", "Calls that the front has answered or refused, by method and gRPC status", ["method", "code"]
)
SECONDS = BatchHistogram(
    "ceremony_rpc_seconds",
    "Time from taking a call up to its answer, forwarding included; streams and refused starts are not timed",
    ["method"],
    buckets_seconds=BUCKETS_SECONDS,
    registry=REGISTRY,
)
