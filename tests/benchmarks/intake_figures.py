"""Figures of the measured starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.benchmarks.intake import WANTED, IntakeRun, Phase
from tests.benchmarks.report import Row, number

# An engine further behind at the end did not keep up: calls piled up, and their times only show for how long.
BEHIND_SECONDS = 1.0
KINDS = {
    "approval": "a gate opens in the command that starts it; then a person is awaited",
    "merge_chain": "its five merges are settled in the command that starts it",
}


def summary(runs: Sequence[IntakeRun]) -> dict[str, Any]:
    """Figures of the first definition under short names, in the layout that took most starts, and all by definition."""
    first = max((run for run in runs if run.definition == runs[0].definition), key=lambda run: run.most.measured.per_s)
    return {
        "starts_served_by": str(first.layout),
        "starts_per_s": first.most.measured.per_s,
        "start_p50_ms": first.half_of_most.measured.p50_ms,
        "start_p99_ms": first.half_of_most.measured.p99_ms,
        f"start_p50_ms_at_{WANTED // 2}_per_s": first.half_of_wanted.measured.p50_ms,
        f"start_p99_ms_at_{WANTED // 2}_per_s": first.half_of_wanted.measured.p99_ms,
        "cpu_us_per_start": first.most.worker_us,
        "intake": {title(run): _of_run(run) for run in runs},
    }


def title(run: IntakeRun) -> str:
    return f"{run.definition}, {run.layout}"


def _of_run(run: IntakeRun) -> dict[str, Any]:
    phases = {"most": run.most, "half_of_most": run.half_of_most, f"half_of_{WANTED}": run.half_of_wanted}
    return {"callers": run.callers, **{name: _of_phase(phase) for name, phase in phases.items()}}


def _of_phase(phase: Phase) -> dict[str, Any]:
    measured = phase.measured
    return {
        "asked_per_s": phase.asked,
        "accepted_per_s": measured.per_s,
        "sustained": sustained(phase),
        "failed": measured.failed,
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
        "worker_cpu_us_per_start": phase.worker_us,
        "callers_cpu_cores": measured.cpu_cores,
    }


def sustained(phase: Phase) -> bool:
    """Return whether the engine kept up with the rate."""
    return phase.asked is None or (phase.measured.behind_s <= BEHIND_SECONDS and not phase.measured.failed)


def rows(runs: Sequence[IntakeRun]) -> list[Row]:
    """Rows of the table for people."""
    return [row for run in runs for row in _rows(run)]


def sentence(figures: dict[str, Any]) -> str:
    """Part of the one line for people."""
    return (
        f"{figures['starts_per_s']:,.0f} starts/s, {figures['starts_served_by']}, at half of that"
        f" {figures['start_p99_ms']:.0f} ms p99"
    )


def _rows(run: IntakeRun) -> list[Row]:
    most = run.most.measured
    name = f"starts of {title(run)}"
    times = f"{number(most.p50_ms)} / {number(most.p99_ms)} ms p50 / p99"
    return [
        Row(
            f"{name}: starts/s at most",
            number(most.per_s),
            f"{KINDS[run.definition]}; {run.callers} callers, {times}; CPU of the workers {run.most.worker_us:.0f} µs"
            f" each; the callers took {most.cpu_cores:.2f} cores{_failures(run.most)}",
        ),
        *(_at_a_rate(name, phase) for phase in (run.half_of_most, run.half_of_wanted)),
    ]


def _at_a_rate(name: str, phase: Phase) -> Row:
    measured = phase.measured
    kept = "" if sustained(phase) else f"not sustained: {number(measured.behind_s)} s behind at the end; "
    return Row(
        f"{name}, {phase.asked:,.0f} a second: ms p50 / p99",
        f"{number(measured.p50_ms)} / {number(measured.p99_ms)}",
        f"{kept}sent when due, also behind unanswered ones; the callers took {measured.cpu_cores:.2f} cores"
        f"{_failures(phase)}",
    )


def _failures(phase: Phase) -> str:
    failed = phase.measured.failed
    return "".join(f"; {count:,} times {words}" for words, count in failed.items())
