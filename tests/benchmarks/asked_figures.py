"""Figures of the throughput runs whose steps ask their agent, and so pass through topics, agent and outcome."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.benchmarks import bare_figures
from tests.benchmarks.bench import Found
from tests.benchmarks.report import Row, Spread, spread
from tests.benchmarks.workloads import PUBLISHES


def measured(found: Found, workers: int) -> bool:
    """Return whether engine runs and bare loops, which the ratios need, are there."""
    return bool(found.asked) and set(bare_figures.kinds([workers])) <= set(found.asked_bare)


def summary(found: Found, workers: int) -> dict[str, Any]:
    """`asked_…`: medians of the first layout, and of the loops that read and write the same records."""
    runs = found.asked
    rate = spread([run.steps_per_s for run in runs]).median
    records = runs[0].records
    figures = {
        "steps_per_s": rate,
        **bare_figures.ratios(found.asked_bare, rate, workers),
        "steps_per_s_log": spread([run.steps_per_s_log for run in runs]).median,
        "cpu_us_per_step": spread([run.cpu_us_per_step for run in runs]).median,
        "kafka_cpu_us_per_step": spread([run.kafka_cpu_us_per_step for run in runs]).median,
        "nats_cpu_us_per_step": spread([run.nats_cpu_us_per_step for run in runs]).median,
        "other_work_cores": [run.others_cores for run in runs],
        **bare_figures.summary(found.asked_bare, records),
        "records_of_a_ceremony": msgspec.to_builtins(records),
    }
    return {f"asked_{name}": figure for name, figure in figures.items()}


def spreads(found: Found) -> dict[str, Spread]:
    """Bars of the plot."""
    return {"engine, publish steps, until on NATS": spread([run.steps_per_s for run in found.asked])}


def rows(found: Found, figures: dict[str, Any], workers: int) -> list[Row]:
    """Rows of the table for people."""
    layout = f"engine, {'1 worker' if workers == 1 else f'{workers} workers'}, {PUBLISHES.steps}"
    ratios = bare_figures.ratios(found.asked_bare, figures["asked_steps_per_s"], workers)
    return [
        Row(
            f"{layout}: steps/s until on NATS",
            str(spread([run.steps_per_s for run in found.asked])),
            f"{PUBLISHES.how}; {bare_figures.shares(ratios, workers)} for the same records",
        ),
        Row(
            f"{layout}: CPU, µs a step",
            f"{figures['asked_cpu_us_per_step']:.0f}",
            f"beside it Kafka {figures['asked_kafka_cpu_us_per_step']:.0f},"
            f" NATS {figures['asked_nats_cpu_us_per_step']:.0f};"
            f" the bare loop {figures['asked_bare_loop_cpu_us_per_step']:.0f}; other work on the machine"
            f" {' '.join(f'{cores:.1f}' for cores in figures['asked_other_work_cores'])} cores",
        ),
        *bare_figures.rows(found.asked_bare, found.asked[0].records, PUBLISHES),
    ]
