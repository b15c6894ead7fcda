"""The figures of one benchmark: as JSON, as a table, as one line, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.benchmarks.profiler import Profile

PROFILE_ROWS = 15


class Spread(NamedTuple):
    """One figure over its repetitions."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        if self.runs == 1:
            return f"{number(self.median)}  (1 run)"
        return f"{number(self.median)}  ({number(self.low)} to {number(self.high)}, {self.runs} runs)"


def number(value: float) -> str:
    """With about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


class Row(NamedTuple):
    """One line of the table."""

    what: str
    figure: str
    how: str


def line(found: dict[str, Any]) -> str:
    """The one line a human reads."""
    load = found["load_average_before"][0]
    others = statistics.median(found["other_work_cores"])
    machine = f"{found['cores']} cores, of which other work took {others:.1f}; load average {load:.1f} before"
    return (
        f"{found['steps_per_s']:,.0f} steps/s until all events are on NATS, {found['best_served_by']}"
        f" ({found['steps_per_s_log']:,.0f} in the log, {found['ratio_to_bare_loop']:.2f} of a bare aiokafka loop,"
        f" {found['cpu_us_per_step']:.0f} µs of CPU a step); one ceremony of five steps alone"
        f" {found['serial_p50_ms']:.1f} ms p50, {found['serial_p99_ms']:.1f} ms p99 on Kafka,"
        f" {found['serial_embedded_p50_ms']:.1f} ms embedded; recovery {found['recovery_rows_per_s']:,.0f} rows/s;"
        f" {found['starts_per_s']:,.0f} starts/s, {found['starts_served_by']}, at half of that"
        f" {found['start_p99_ms']:.0f} ms p99; {machine}"
    )


def show(console: Console, rows: Sequence[Row], profile: Profile | None) -> None:
    table = Table(title="ceremony engine: benchmark", title_justify="left")
    table.add_column("measured")
    table.add_column("figure", justify="right")
    table.add_column("how", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if profile is not None:
        _show_profile(console, profile)


def _show_profile(console: Console, profile: Profile) -> None:
    for title, shares in (("who works", profile.by_owner), ("self", profile.self_time), ("total", profile.total_time)):
        table = Table(title=f"profile of the worker: {title}, {profile.samples} samples", title_justify="left")
        table.add_column("share", justify="right")
        table.add_column("function" if title != "who works" else "owner")
        for name, share in list(shares.items())[:PROFILE_ROWS]:
            table.add_row(f"{share:.1%}", name)
        console.print(table)


def plot(file: Path, found: dict[str, Any]) -> None:
    """Throughput, latencies and rates. The format follows from the file's suffix."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load, and not everybody plots

    figure = Figure(figsize=(10, 7), layout="constrained")
    (speed, latency), (rows, starts) = figure.subplots(2, 2, width_ratios=[3, 2])
    _bars(speed, found["spreads"], "steps/s, median with lowest and highest of the runs")
    milliseconds = {
        "a ceremony of five steps, Kafka, p50": found["serial_p50_ms"],
        "p99": found["serial_p99_ms"],
        "the same, embedded, p50": found["serial_embedded_p50_ms"],
        "p99 ": found["serial_embedded_p99_ms"],
        "a start at half load, p50": found["start_p50_ms"],
        "p99  ": found["start_p99_ms"],
    }
    _bars(latency, _single(milliseconds), "ms")
    recovery = {
        "recovery, the driver alone": found["recovery_driver_rows_per_s"],
        "recovery, the engine": found["recovery_rows_per_s"],
    }
    _bars(rows, _single(recovery), "rows/s")
    most = {name: run["most"]["accepted_per_s"] for name, run in found["intake"].items()}
    _bars(starts, _single(most), "starts/s at most")
    load = found["load_average_before"][0]
    figure.suptitle(f"{found['date']}, {found['cores']} cores, load average {load:.1f} before", fontsize=9)
    figure.savefig(file)


def _single(values: dict[str, float]) -> dict[str, Spread]:
    return {name: Spread(value, value, value, 1) for name, value in values.items()}


def _bars(axes: Any, spreads: dict[str, Any], title: str) -> None:
    names = list(spreads)
    values = [Spread(*spreads[name]) for name in names]
    errors = [[v.median - v.low for v in values], [v.high - v.median for v in values]]
    drawn = axes.barh(names, [v.median for v in values], xerr=errors if any(v.runs > 1 for v in values) else None)
    axes.bar_label(drawn, labels=[number(v.median) for v in values], padding=4)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.2)
    axes.invert_yaxis()
