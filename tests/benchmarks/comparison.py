"""Other engines' figures beside ours, with ratios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from tests.benchmarks.engines import Figures
from tests.benchmarks.report import Row, number


class Measure(NamedTuple):
    """A figure that both engines have."""

    key: str
    """Its key in our summary (there also after `asked_`) and in `engines.Figures`."""
    title: str
    more_is_better: bool


MEASURES = (
    Measure("steps_per_s", "steps/s", more_is_better=True),
    Measure("serial_p50_ms", "serial p50, ms", more_is_better=False),
    Measure("serial_p99_ms", "serial p99, ms", more_is_better=False),
    Measure("recovery_rows_per_s", "recovery, rows/s", more_is_better=True),
    Measure("starts_per_s", "starts/s", more_is_better=True),
    Measure("start_p99_ms", "a start at half load, p99, ms", more_is_better=False),
    Measure("cpu_us_per_step", "CPU, µs a step", more_is_better=False),
)


def compared(ours: Mapping[str, Any], others: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    """Figures of each other engine; a ratio above 1 says how many times better ours is.

    `asked_…` compares with our steps that ask their agent, as the steps of most engines do.
    """
    return {name: {**msgspec.to_builtins(theirs), "ratios": _ratios(ours, theirs)} for name, theirs in others.items()}


def _ratios(ours: Mapping[str, Any], theirs: Figures) -> dict[str, float]:
    ratios = {}
    for measure in MEASURES:
        them = getattr(theirs, measure.key)
        for key in (measure.key, f"asked_{measure.key}"):
            us = ours.get(key)
            if us and them:
                ratios[key] = us / them if measure.more_is_better else them / us
    return ratios


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """Return a row for each figure of each other engine."""
    return [
        Row(f"{name}: {measure.title}", number(theirs[measure.key]), _beside(theirs, measure.key))
        for name, theirs in figures["other_engines"].items()
        for measure in MEASURES
        if theirs[measure.key] is not None
    ]


def _beside(theirs: Mapping[str, Any], key: str) -> str:
    ratio = theirs["ratios"].get(key)
    asked = theirs["ratios"].get(f"asked_{key}")
    ours = f"ours is {ratio:.1f} times as good" if ratio else ""
    parts = [f"{ours}, {asked:.1f} where each step asks its agent" if asked else ours, theirs["note"]]
    return "; ".join(part for part in parts if part)
