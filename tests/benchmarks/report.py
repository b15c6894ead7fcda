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
    """A figure over its repetitions."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        if self.runs == 1:
            return f"{number(self.median)}  (1 run)"
        return f"{number(self.median)}  ({number(self.low)} to {number(self.high)}, {self.runs} runs)"


def number(value: float) -> str:
    """Format a number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


class Row(NamedTuple):
    """One line of the table."""

    what: str
    figure: str
    how: str


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
    """Draw throughput, latencies and rates. The file's suffix chooses the format."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load, and not everybody plots

    shown = {title: bars for title, bars in _panels(found).items() if bars}
    figure = Figure(figsize=(10, 3.5 * -(-len(shown) // 2)), layout="constrained")
    for number, (title, bars) in enumerate(shown.items(), start=1):
        _bars(figure.add_subplot(-(-len(shown) // 2), 2, number), bars, title)
    load = found["load_average_before"][0]
    figure.suptitle(f"{found['date']}, {found['cores']} cores, load average {load:.1f} before", fontsize=9)
    figure.savefig(file)


def _panels(found: dict[str, Any]) -> dict[str, dict[str, Spread]]:
    """Return the bars of each panel by its title."""
    milliseconds = {
        "serial, Kafka, p50": "serial_p50_ms",
        "serial, Kafka, p99": "serial_p99_ms",
        "serial, Kafka, publish steps, p50": "asked_serial_p50_ms",
        "serial, Kafka, publish steps, p99": "asked_serial_p99_ms",
        "serial, embedded, p50": "serial_embedded_p50_ms",
        "serial, embedded, p99": "serial_embedded_p99_ms",
        "a start at half load, p50": "start_p50_ms",
        "a start at half load, p99": "start_p99_ms",
    }
    rows = {
        "recovery, the driver alone": "recovery_driver_rows_per_s",
        "recovery, the engine": "recovery_rows_per_s",
    }
    most = {name: run["most"]["accepted_per_s"] for name, run in found.get("intake", {}).items()}
    return {
        "steps/s, median with lowest and highest of the runs": found["spreads"],
        "ms; serial: one ceremony of five steps": _single(_there(milliseconds, found)),
        "rows/s": _single(_there(rows, found)),
        "starts/s at most": _single(most),
    }


def _there(keys: dict[str, str], found: dict[str, Any]) -> dict[str, float]:
    return {name: found[key] for name, key in keys.items() if key in found}


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
    axes.margins(x=0.25)
    axes.locator_params(axis="x", nbins=5)
    axes.invert_yaxis()
