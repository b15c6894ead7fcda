"""The benchmark of the pure path measures the whole of it."""

from __future__ import annotations

from steps.registry import all_kinds
from tables.loader import load
from tests.benchmarks import fold
from tests.benchmarks.preload import DEFINITION
from tests.benchmarks.processes import SPECS


def test_each_stage_is_measured_and_every_ceremony_comes_to_its_end() -> None:
    """The chain itself fails where a ceremony has not ended."""
    file = SPECS / f"{DEFINITION}.yaml"
    found = fold.measure(load(file.read_text(encoding="utf-8"), file.name, all_kinds()), ceremonies=3, repetitions=2)
    assert found.keys() == fold.STAGES.keys()
    assert all(micros > 0 for stage, micros in found.items() if stage != "agent")
