"""Figures of the live ceremonies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tests.benchmarks.live import KEPT_UP_MS, LiveRun
from tests.benchmarks.report import Row, number


def summary(runs: Sequence[LiveRun]) -> dict[str, Any]:
    """`live`: each rate of each log and layout; `live_kept_up_per_s`: the highest rate kept up of each."""
    return {
        "live": [
            {
                "log": run.log,
                "layout": run.layout.name,
                "rate": run.rate,
                "kept_up": run.kept_up,
                **msgspec.to_builtins(run.measured),
                "cpu_ms": dict(run.cpu_ms),
                "engine_cpu_ms": run.engine_cpu_ms,
                "other_work_cores": run.others_cores,
            }
            for run in runs
        ],
        "live_kept_up_per_s": {who: _highest(theirs) for who, theirs in _by_engine(runs).items()},
    }


def rows(runs: Sequence[LiveRun]) -> list[Row]:
    return [
        *(
            Row(
                f"live backlog reviews, {who}: kept up, starts/s",
                number(_highest(theirs)) if _highest(theirs) else "none",
                f"the highest rate of {', '.join(f'{run.rate:g}' for run in theirs)} with p99 below"
                f" {KEPT_UP_MS / 1000:g} s; agents answer in 10 ms, gates are approved as they open",
            )
            for who, theirs in _by_engine(runs).items()
        ),
        *(_row(who, run) for who, theirs in _by_engine(runs).items() for run in theirs),
    ]


def _row(who: str, run: LiveRun) -> Row:
    whole, measured = run.measured.whole, run.measured
    hops = ", ".join(f"{hop} {times.p50_ms:.0f} / {times.p99_ms:.0f}" for hop, times in measured.hops.items())
    cpu = ", ".join(f"{who} {number(ms)}" for who, ms in run.cpu_ms.items())
    lost = "" if measured.completed == measured.due else f"{measured.completed:,} of {measured.due:,} ended; "
    failed = f"failed calls: {measured.failed}; " if measured.failed else ""
    return Row(
        f"{who}, {run.rate:g}/s: whole, ms p50 / p99",
        f"{whole.p50_ms:,.0f} / {whole.p99_ms:,.0f}",
        f"{lost}{failed}CPU a review {number(run.engine_cpu_ms)} ms ({cpu}); ms p50 / p99: {hops};"
        f" other work {run.others_cores:.1f} cores",
    )


def sentence(runs: Sequence[LiveRun]) -> str:
    """Part of the one line for people."""
    each = (f"{_highest(theirs):g}/s ({who})" for who, theirs in _by_engine(runs).items())
    return f"live backlog reviews kept up {', '.join(each)}"


def _by_engine(runs: Iterable[LiveRun]) -> dict[str, list[LiveRun]]:
    found: dict[str, list[LiveRun]] = {}
    for run in runs:
        found.setdefault(f"{run.log}, {run.layout}", []).append(run)
    return found


def _highest(runs: Sequence[LiveRun]) -> float:
    return max((run.rate for run in runs if run.kept_up), default=0.0)
