"""Pauses between attempts: growing, bounded, no sooner than half of the hint, within the deadline."""

from __future__ import annotations

import math

import grpc
import pytest
from fleet.planning_ceremony.client.backoff import LEAST_SECONDS, LONGEST_SECONDS, Attempts, pause_before_next
from fleet.planning_ceremony.client.errors import ErrorDetails, PlanningCeremonyError
from hypothesis import given
from hypothesis import strategies as st

MOVING = PlanningCeremonyError(grpc.StatusCode.UNAVAILABLE, "unavailable: moving")
REFUSED = PlanningCeremonyError(grpc.StatusCode.NOT_FOUND, "unknown_instance: no")


def hinted(seconds: float) -> PlanningCeremonyError:
    return PlanningCeremonyError(grpc.StatusCode.UNAVAILABLE, "unavailable: moving", ErrorDetails(retry_delay=seconds))


@given(st.integers(1, 10_000), st.floats(0, 100))
def test_a_pause_is_within_its_bounds_and_the_deadline(attempts: int, left: float) -> None:
    # specification 14.19
    pause = pause_before_next(MOVING, attempts, left)
    if pause is None:
        assert left < 2 * LEAST_SECONDS + 1e-9
    else:
        assert LEAST_SECONDS <= pause <= min(LONGEST_SECONDS, left - LEAST_SECONDS)


@given(st.floats(0.1, 1000), st.floats(0, 2000))
def test_a_hint_is_heeded_or_nothing_is_repeated(hint: float, left: float) -> None:
    # specification 14.19
    pause = pause_before_next(hinted(hint), 1, left)
    if pause is None:
        assert left - LEAST_SECONDS < hint * 0.5 + 1e-9
    else:
        assert hint * 0.5 <= pause <= min(hint * 1.5, left - LEAST_SECONDS)


def test_without_a_deadline_it_goes_on_for_ever() -> None:
    assert pause_before_next(MOVING, 10**6, math.inf) is not None
    assert pause_before_next(REFUSED, 1, math.inf) is None


def test_pauses_grow() -> None:
    """The longest pause of each attempt is more than the shortest of the one three attempts later."""
    pauses = [max(pause_before_next(MOVING, attempt, 100) or 0 for _ in range(50)) for attempt in (1, 3, 5)]
    assert pauses == sorted(pauses)
    assert pauses[0] <= 0.1 < pauses[1]


def test_the_refusal_that_tells_most_is_raised() -> None:
    """When the last attempt ends by its deadline, the error before it says why there was no answer."""
    late = PlanningCeremonyError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    attempts = Attempts(60.0)
    attempts.pause_after(MOVING)
    attempts._deadline = 0.0
    with pytest.raises(PlanningCeremonyError) as raised:
        attempts.pause_after(late)
    assert raised.value is MOVING
    with pytest.raises(PlanningCeremonyError) as raised:
        attempts.pause_after(REFUSED)
    assert raised.value is REFUSED
    with pytest.raises(PlanningCeremonyError) as raised:
        Attempts(0.0).pause_after(late)
    assert raised.value is late
