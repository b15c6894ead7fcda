"""Figures of the throughput runs: each layout, and its ratios to the bare loops."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.benchmarks import asked_figures, bare_figures
from tests.benchmarks.bench import Found
from tests.benchmarks.layouts import Layout
from tests.benchmarks.report import Row, Spread, number, spread
from tests.benchmarks.throughput import EngineRun
from tests.benchmarks.workloads import MERGES


def measured(found: Found) -> bool:
    """Return whether each layout and its bare loops, which the ratios need, are there."""
    return bool(found.engine) and set(bare_figures.kinds([len(layout.roles) for layout in found.engine])) <= set(
        found.bare
    )


def summary(found: Found) -> dict[str, Any]:
    """Medians of steps/s; the engine's are those of the best layout."""
    best = best_of(found)
    runs = found.engine[best]
    until_nats = spread([run.steps_per_s for run in runs])
    figures = {
        "steps_per_s": until_nats.median,
        "workers": best.name,
        "best_served_by": str(best),
        **bare_figures.ratios(found.bare, until_nats.median, len(best.roles)),
        "steps_per_s_log": spread([run.steps_per_s_log for run in runs]).median,
        **bare_figures.summary(found.bare, runs[0].records),
        "cpu_us_per_step": spread([run.cpu_us_per_step for run in runs]).median,
        "other_work_cores": [run.others_cores for every in found.engine.values() for run in every],
        "layouts": {layout.name: _of_layout(every) for layout, every in found.engine.items()},
        "records_of_a_ceremony": msgspec.to_builtins(runs[0].records),
        "spreads": _spreads(found),
    }
    if _asked(found):
        figures |= asked_figures.summary(found, _asked_workers(found))
    if found.synced:
        figures["steps_per_s_nats_sync_always"] = _synced(found).median
    return figures


def _asked(found: Found) -> bool:
    return asked_figures.measured(found, _asked_workers(found))


def _asked_workers(found: Found) -> int:
    """Figures of the first layout with steps that ask their agent."""
    return len(next(iter(found.engine)).roles)


def best_of(found: Found) -> Layout:
    """Return the layout with the best median."""
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
    """Average milliseconds and rows of a checkpoint, checkpoints a second and rows a step, over all runs."""
    made, rows, seconds = (sum(figures) for figures in zip(*(run.checkpoints for run in runs), strict=True))
    lasted = sum(run.steps / run.steps_per_s for run in runs)
    return {
        "ms": 1000 * seconds / made,
        "rows": rows / made,
        "per_s": made / lasted,
        "rows_per_step": rows / sum(run.steps for run in runs),
    }


def _synced(found: Found) -> Spread:
    return spread([run.steps_per_s for run in found.synced])


def _spreads(found: Found) -> dict[str, Spread]:
    """Bars of the plot."""
    loops = {str(kind): bare_figures.rate(found.bare, kind) for kind in found.bare}
    engine = {
        f"engine, {layout}, until on NATS": spread([run.steps_per_s for run in runs])
        for layout, runs in found.engine.items()
    }
    asked = asked_figures.spreads(found) if found.asked else {}
    return {**loops, **engine, **asked, **({"engine, NATS syncs each": _synced(found)} if found.synced else {})}


def rows(found: Found, figures: dict[str, Any]) -> list[Row]:
    """Rows of the table for people."""
    synced = [
        Row(
            "engine: steps/s until on NATS",
            str(_synced(found)),
            f"{next(iter(found.engine))}, {MERGES.how}, NATS with sync_interval: always",
        )
    ]
    records = found.engine[next(iter(found.engine))][0].records
    return [
        *bare_figures.rows(found.bare, records, MERGES),
        *(row for layout in found.engine for row in _layout_rows(layout, found, figures)),
        *(asked_figures.rows(found, figures, _asked_workers(found)) if _asked(found) else ()),
        *(synced if found.synced else ()),
    ]


def _layout_rows(layout: Layout, bench: Found, figures: dict[str, Any]) -> list[Row]:
    runs, found = bench.engine[layout], figures["layouts"][layout.name]
    until_nats = spread([run.steps_per_s for run in runs])
    workers = len(layout.roles)
    ratios = bare_figures.ratios(bench.bare, until_nats.median, workers)
    headline = "the headline; " if layout.name == figures["workers"] else ""
    saved = found["checkpoint"]
    synced = "Kafka syncs" if figures["flush_messages"] else "Kafka does not sync"
    shares = ", ".join("+".join(map(str, run.partitions)) for run in runs)
    return [
        Row(
            f"engine, {layout}: steps/s until on NATS",
            str(until_nats),
            f"{headline}{MERGES.how}; {bare_figures.shares(ratios, workers)}; {synced}, NATS does not",
        ),
        Row(
            f"engine, {layout}: steps/s in the log",
            str(spread([run.steps_per_s_log for run in runs])),
            f"until the last step.executed is appended; partitions {shares}",
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
            f" {' '.join(f'{cores:.1f}' for cores in found['other_work_cores'])} of {os.cpu_count()} cores",
        ),
    ]


def sentence(figures: dict[str, Any]) -> str:
    """Part of the one line for people."""
    told = (
        f"{figures['steps_per_s']:,.0f} steps/s until all events are on NATS, {MERGES.how},"
        f" {figures['best_served_by']} ({figures['steps_per_s_log']:,.0f} in the log,"
        f" {figures['ratio_to_bare_loop']:.2f} of a bare aiokafka loop,"
        f" {figures['cpu_us_per_step']:.0f} µs of CPU a step)"
    )
    if "asked_steps_per_s" not in figures:
        return told
    return (
        f"{told}; {figures['asked_steps_per_s']:,.0f} steps/s that ask their agent"
        f" ({figures['asked_ratio_to_bare_loop']:.2f} of such a loop, {figures['asked_cpu_us_per_step']:.0f} µs)"
    )
