"""Results of a fault run as JSON, as a table, and as a plot."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.faults.plan import Plan
from tests.faults.run import Verdict


def data(plan: Plan, verdicts: Sequence[Verdict], load_before: float) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sound": all(verdict.sound for verdict in verdicts),
        "starts": sum(verdict.starts for verdict in verdicts),
        "lost": sum(verdict.lost for verdict in verdicts),
        "duplicated": sum(verdict.doubled for verdict in verdicts),
        "plan": asdict(plan),
        "host": {"cores": os.cpu_count(), "load_average_before": load_before, "python": platform.python_version()},
        "faults": [{**asdict(verdict), "sound": verdict.sound} for verdict in verdicts],
    }


def show(console: Console, found: dict[str, Any]) -> None:
    table = Table(title=f"faults under load, seed {found['plan']['seed']}, {found['date']}", title_justify="left")
    table.add_column("fault")
    for name in ("times", "starts", "lost", "doubled", "first start, s", "first event, s", "longest pause, s", "sound"):
        table.add_column(name, justify="right")
    for one in found["faults"]:
        table.add_row(
            one["fault"],
            str(len(one["struck"])),
            str(one["starts"]),
            str(one["lost"]),
            str(one["doubled"]),
            spread([blow["first_start"] for blow in one["struck"]]),
            spread([blow["first_event"] for blow in one["struck"]]),
            f"{max(one['longest_start_pause'], one['longest_event_pause']):.1f}",
            "yes" if one["sound"] else "NO",
        )
    console.print(table)
    for one in found["faults"]:
        for line in (*one["problems"], *one["violations"]):
            console.print(f"{one['fault']}: {line}", style="red", markup=False, highlight=False)


def spread(values: Sequence[float | None]) -> str:
    """Format lowest to highest; a dash if the next blow came first."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    return f"{known[0]:.1f}" if len(known) == 1 else f"{known[0]:.1f} - {known[-1]:.1f}"


def plot(file: Path, found: dict[str, Any]) -> None:
    """Draw the recovery of every blow and the longest pause of each fault. The file's suffix chooses the format."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load, and not everybody plots

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    faults = found["faults"]
    axes.barh(
        range(len(faults)),
        [max(one["longest_start_pause"], one["longest_event_pause"]) for one in faults],
        color="#d8dee9",
        label="longest pause",
    )
    for what, mark in (("first_start", "o"), ("first_event", "x")):
        points = [
            (blow[what], row) for row, one in enumerate(faults) for blow in one["struck"] if blow[what] is not None
        ]
        axes.plot([x for x, _ in points], [y for _, y in points], mark, label=f"{what.replace('_', ' ')} after it")
    labels = [
        f"{one['fault']}\n{one['starts']:,} starts, {one['lost']} lost, {one['doubled']} doubled" for one in faults
    ]
    axes.set_yticks(range(len(faults)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)
    figure.suptitle(f"Faults under load, {found['date']}, seed {found['plan']['seed']}", fontsize=9)
    figure.savefig(file)
