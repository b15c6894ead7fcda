"""The benchmark of the fold measures every stage."""

from __future__ import annotations

import pytest

from tables.kinds import Kinds
from tests.benchmarks import fold
from tests.tables.world import ASKED, KINDS


@pytest.mark.parametrize(("kinds", "idle"), [(KINDS, {"steps"}), (ASKED, set())], ids=["at once", "asked"])
def test_each_stage_is_measured_and_every_ceremony_ends(kinds: Kinds, idle: set[str]) -> None:
    """The chain itself fails if a ceremony has not ended."""
    found = fold.measure(kinds, ceremonies=3, repetitions=2)
    assert found.keys() == fold.STAGES.keys()
    assert {stage for stage, micros in found.items() if not micros} == idle
    assert all(micros >= 0 for stage, micros in found.items() if stage != "agent")
