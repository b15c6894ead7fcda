"""A folded command knows when an attempt that it ended had begun."""

from __future__ import annotations

from msgspec.structs import replace

from streams.folded import Folded
from tables.instance import Instance, StepState, StepStatus
from tests.streams.test_outcomes import LOOP, CountedWorld


def row_with(attempt: int, started_at: int) -> Instance:
    world = CountedWorld(LOOP)
    world.start()
    row = world.decisions[-1].row
    assert row is not None
    return replace(row, steps={**row.steps, "tell": StepState(StepStatus.IN_PROGRESS, attempt, started_at=started_at)})


def began(before: Instance | None, after: Instance | None) -> int:
    return Folded(before, after, None, ()).began("tell", 2)


def test_the_row_after_knows_the_newest_attempt() -> None:
    assert began(row_with(1, 500), row_with(2, 700)) == 700


def test_the_row_before_knows_the_attempt_of_a_state_that_is_entered_anew() -> None:
    assert began(row_with(2, 700), row_with(2, 0)) == began(row_with(2, 700), row_with(3, 900)) == 700


def test_an_unknown_start_is_no_time() -> None:
    """A duration from it would be the age of the epoch."""
    assert began(row_with(2, 0), row_with(3, 900)) == began(None, None) == 0
