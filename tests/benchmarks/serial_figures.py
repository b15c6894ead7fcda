"""Figures of the ceremonies that ran one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.report import Row
from tests.benchmarks.serial import ASKED, EMBEDDED, KAFKA, SerialRun

PREFIXES = {KAFKA: "serial", ASKED: "asked_serial", EMBEDDED: "serial_embedded"}


def summary(runs: Mapping[str, SerialRun]) -> dict[str, Any]:
    """`serial_…` on Kafka, `serial_embedded_…` on the embedded log, `asked_serial_…` where steps ask their agent."""
    return {
        f"{PREFIXES[log]}_{name}": getattr(run, name)
        for log, run in runs.items()
        for name in ("p50_ms", "p99_ms", "start_p50_ms", "log_p50_ms", "log_p99_ms", "count")
    }


def rows(runs: Mapping[str, SerialRun]) -> list[Row]:
    return [
        Row(f"serial, {what}: ms p50 / p99", f"{run.p50_ms:.1f} / {run.p99_ms:.1f}", _how(what, run))
        for what, run in runs.items()
    ]


def _how(what: str, run: SerialRun) -> str:
    told = f"gRPC call to `completed` on NATS; including {run.start_p50_ms:.1f} for the call"
    if what == ASKED:
        return f"{told}, from the start to the fifth outcome in the log {run.log_p50_ms:.0f}"
    return f"{told}: five merges, settled in the command that starts them"


def sentence(runs: Mapping[str, SerialRun]) -> str:
    """Part of the one line for people."""
    each = ", ".join(f"{run.p50_ms:.1f} ms p50 and {run.p99_ms:.1f} p99 ({what})" for what, run in runs.items())
    return f"one ceremony of five steps alone {each}"
