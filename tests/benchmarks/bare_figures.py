"""Figures of the bare loops: the steps a second that they would allow, and the engine's share of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.benchmarks.report import Row, Spread, spread
from tests.benchmarks.sizes import CeremonyRecords
from tests.benchmarks.workloads import STEPS, Workload


class Kind(NamedTuple):
    """One kind of loop: its number of processes and its way to write."""

    processes: int
    batches: bool
    """Write with one future a batch, else with one `send` a record."""

    def __str__(self) -> str:
        loops = "bare loop" if self.processes == 1 else f"{self.processes} bare loops"
        return f"{loops}, one {'future a batch' if self.batches else 'send a record'}"


ONE = Kind(1, batches=False)


class BareRun(NamedTuple):
    """One run of all loops of a kind."""

    steps_per_s: float
    cpu_us_per_step: float


Bare = Mapping[Kind, Sequence[BareRun]]


def kinds(workers: Sequence[int]) -> list[Kind]:
    """One loop, and as many loops as workers, so that each worker is compared with a loop of its own."""
    return [Kind(count, batches) for count in sorted({1, *workers}) for batches in (False, True)]


def rate(bare: Bare, kind: Kind) -> Spread:
    return spread([run.steps_per_s for run in bare[kind]])


def summary(bare: Bare, records: CeremonyRecords) -> dict[str, Any]:
    """Figures of one loop under short names, and of all kinds. `records`: the numbers that the loops read and wrote."""
    one = rate(bare, ONE).median
    return {
        "bare_loop_steps_per_s": one,
        "bare_loop_records_per_s": (records.read + records.written) * one / STEPS,
        "bare_loop_in_batches_steps_per_s": rate(bare, Kind(1, batches=True)).median,
        "bare_loop_cpu_us_per_step": spread([run.cpu_us_per_step for run in bare[ONE]]).median,
        "bare_loops": {str(kind): rate(bare, kind).median for kind in bare},
    }


def ratios(bare: Bare, steps_per_s: float, workers: int) -> dict[str, float]:
    """Ratios of the engine to one loop, and to as many loops as it has workers."""
    return {
        "ratio_to_bare_loop": steps_per_s / rate(bare, ONE).median,
        "ratio_to_bare_loop_in_batches": steps_per_s / rate(bare, Kind(1, batches=True)).median,
        "ratio_to_as_many_bare_loops": steps_per_s / rate(bare, Kind(workers, batches=False)).median,
        "ratio_to_as_many_bare_loops_in_batches": steps_per_s / rate(bare, Kind(workers, batches=True)).median,
    }


def shares(found: Mapping[str, float], workers: int) -> str:
    """The ratios for people."""
    one, batches = found["ratio_to_bare_loop"], found["ratio_to_bare_loop_in_batches"]
    told = f"{one:.2f} of one bare loop ({batches:.2f} of one in batches)"
    if workers > 1:
        many, in_batches = found["ratio_to_as_many_bare_loops"], found["ratio_to_as_many_bare_loops_in_batches"]
        told += f", {many:.2f} of {workers} ({in_batches:.2f})"
    return told


def rows(bare: Bare, records: CeremonyRecords, workload: Workload) -> list[Row]:
    return [
        Row(f"{kind}, as of {workload.steps}: steps/s it would allow", str(rate(bare, kind)), str(records))
        for kind in bare
    ]
