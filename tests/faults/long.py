"""The long form: every fault several times, each run in a world of its own; finished runs are kept, not repeated."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.faults import report
from tests.faults.plan import CLUSTER, LONG, RUNS, Fault
from tests.faults.run import FaultRun, FaultRunFailed, Tell
from tests.faults.world import faketime
from tests.services import KafkaCluster, KafkaServer, ServiceError

USUAL_RUNS = 3
# A run's seed follows from its number, so a failed run can be repeated by `--seed`.
FIRST_SEED = 1000


def not_here(fault: Fault) -> str:
    """Return the reason why a fault cannot be tried on this host, or an empty text."""
    if fault is Fault.CLOCK and faketime() is None:
        return "libfaketime is not installed (Debian: faketime)"
    return ""


def wanted(faults: Sequence[Fault], runs: int | None) -> list[tuple[Fault, int]]:
    """Return all runs in an order in which every fault comes once before any comes twice."""
    counts = {fault: runs or RUNS.get(fault, USUAL_RUNS) for fault in faults if not not_here(fault)}
    return [(fault, n) for n in range(max(counts.values(), default=0)) for fault, count in counts.items() if n < count]


def run_missing(
    results: Path, faults: Sequence[Fault], runs: int | None, rate: float | None, tell: Tell, keep: Path | None = None
) -> None:
    """Do the runs without a file in `results`; each run writes its file at its end, sound or not.

    `keep`: the folder for logs and data of each run; those of an earlier try of the same run are removed first.
    """
    results.mkdir(parents=True, exist_ok=True)
    for fault, number in wanted(faults, runs):
        file = results / f"{fault.name.lower()}-{number}.json"
        if file.exists():
            continue
        with _home(keep, file.stem) as folder:
            found = one(fault, FIRST_SEED + number, rate, tell, folder)
        scratch = file.with_suffix(".new")
        scratch.write_text(json.dumps(found, indent=1) + "\n")
        scratch.rename(file)


@contextlib.contextmanager
def _home(keep: Path | None, name: str) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="ceremony-faults-") as scratch:
            yield Path(scratch)
        return
    folder = keep / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder


def one(fault: Fault, seed: int, rate: float | None, tell: Tell, folder: Path) -> dict[str, Any]:
    """Run one fault. A run that could not be finished is a result, too."""
    plan = replace(LONG, seed=seed, starts_per_second=rate or LONG.starts_per_second)
    before = os.getloadavg()[0]
    kafka = KafkaCluster(folder / "kafka") if fault in CLUSTER else KafkaServer(folder / "kafka")
    try:
        kafka.start()
        try:
            verdicts = FaultRun(plan, folder / "run", kafka, tell).run([fault])
        finally:
            kafka.kill()
    except (FaultRunFailed, ServiceError) as error:
        return {**report.data(plan, [], before), "sound": False, "fault": fault.name, "failed": str(error)}
    return {**report.data(plan, verdicts, before), "fault": fault.name}


def read(results: Path) -> dict[Fault, list[dict[str, Any]]]:
    """Read all finished runs, by fault."""
    found: dict[Fault, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(results.glob("*.json")):
        run = json.loads(file.read_text())
        found[Fault[run["fault"]]].append(run)
    return found


def show(console: Console, found: Mapping[Fault, Sequence[Mapping[str, Any]]]) -> None:
    """Print the table of all runs and their complaints."""
    table = Table(title="faults under load, all runs kept", title_justify="left")
    table.add_column("fault")
    for name in ("runs", "blows", "starts", "lost", "doubled", "seconds to recover, median", "longest", "sound"):
        table.add_column(name, justify="right")
    for fault in Fault:
        if reason := not_here(fault):
            table.add_row(f"{fault}: not tried, {reason}")
        if not (runs := found.get(fault)):
            continue
        recovered = recoveries(runs)
        table.add_row(
            str(fault),
            str(len(runs)),
            str(sum(len(verdict["struck"]) for run in runs for verdict in run["faults"])),
            *(f"{sum(run[name] for run in runs):,}" for name in ("starts", "lost", "duplicated")),
            f"{statistics.median(recovered):.1f}" if recovered else "-",
            f"{max(recovered):.1f}" if recovered else "-",
            f"{sum(run['sound'] for run in runs)} of {len(runs)}",
        )
    console.print(table)
    for fault, runs in found.items():
        for line in complaints(runs):
            console.print(f"{fault}: {line}", style="red", markup=False, highlight=False)


def verdict(found: Mapping[Fault, Sequence[Mapping[str, Any]]], faults: Sequence[Fault], runs: int | None) -> str:
    """Return one line on all runs; it begins with SOUND only if every wanted run is there and was sound."""
    missing = Counter(fault for fault, number in wanted(faults, runs) if number >= len(found.get(fault, ())))
    unsound = {fault: bad for fault, kept in found.items() if (bad := sum(not run["sound"] for run in kept))}
    if unsound:
        return f"NOT SOUND: {_counts(unsound)}"
    if missing:
        return f"NOT COMPLETE: {_counts(missing)} to be run; the same command goes on from here"
    kept = [run for of_fault in found.values() for run in of_fault]
    starts = sum(run["starts"] for run in kept)
    return f"SOUND: {len(kept)} runs of {len(found)} faults, {starts:,} starts, none lost, none doubled"


def _counts(runs: Mapping[Fault, int]) -> str:
    return ", ".join(f"{count} of '{fault}'" for fault, count in runs.items())


def recoveries(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds from the end of each blow until starts were accepted and events came again, whichever is later."""
    blows = [blow for run in runs for verdict in run["faults"] for blow in verdict["struck"]]
    return [max(b["first_start"], b["first_event"]) for b in blows if None not in (b["first_start"], b["first_event"])]


def complaints(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Violations of the runs, each with its seed."""
    lines = [f"seed {run['plan']['seed']}: {run['failed']}" for run in runs if "failed" in run]
    for run in runs:
        for verdict in run["faults"]:
            lines += [f"seed {run['plan']['seed']}: {one}" for one in (*verdict["problems"], *verdict["violations"])]
    return lines


def plot(file: Path, found: Mapping[Fault, Sequence[Mapping[str, Any]]]) -> None:
    """Draw every recovery of every fault. The file's suffix chooses the format."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load, and not everybody plots

    faults = [fault for fault in Fault if found.get(fault)]
    figure = Figure(figsize=(9, 1 + 0.4 * len(faults)), layout="constrained")
    axes = figure.subplots()
    for row, fault in enumerate(faults):
        seconds = recoveries(found[fault])
        axes.plot(seconds, [row] * len(seconds), "o", alpha=0.5, color="#4c6ef5")
    labels = []
    for fault in faults:
        starts, lost, doubled = (sum(run[name] for run in found[fault]) for name in ("starts", "lost", "duplicated"))
        labels.append(f"{fault}\n{len(found[fault])} runs, {starts:,} starts, {lost} lost, {doubled} doubled")
    axes.set_yticks(range(len(faults)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("seconds to recover: from the end of the outage until starts are accepted and events come")
    axes.set_xlim(left=0)
    figure.savefig(file)
