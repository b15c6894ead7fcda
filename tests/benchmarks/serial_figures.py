"""What is made of the ceremonies that ran one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.report import Row
from tests.benchmarks.serial import SerialRun

KAFKA, EMBEDDED = "kafka", "embedded"
PREFIXES = {KAFKA: "serial", EMBEDDED: "serial_embedded"}


def summary(runs: Mapping[str, SerialRun]) -> dict[str, Any]:
    """`serial_…` on Kafka, `serial_embedded_…` on the embedded log."""
    return {
        f"{PREFIXES[log]}_{name}": getattr(run, name)
        for log, run in runs.items()
        for name in ("p50_ms", "p99_ms", "start_p50_ms", "log_p50_ms", "log_p99_ms", "count")
    }


def rows(runs: Mapping[str, SerialRun]) -> list[Row]:
    return [
        Row(
            f"serial, {log}: ms p50 / p99",
            f"{run.p50_ms:.1f} / {run.p99_ms:.1f}",
            f"gRPC call to `completed` on NATS; of it the call {run.start_p50_ms:.1f}, the log {run.log_p50_ms:.0f}",
        )
        for log, run in runs.items()
    ]


def sentence(runs: Mapping[str, SerialRun]) -> str:
    """For the one line that a human reads."""
    each = ", ".join(f"{run.p50_ms:.1f} ms p50 and {run.p99_ms:.1f} p99 ({log})" for log, run in runs.items())
    return f"one ceremony of five steps alone {each}"
