"""Admission: the known lag of a partition, and the starts refused for it."""

from __future__ import annotations

import pytest

from streams import admission as module
from streams.admission import (
    LEAST_STARTS_PER_SECOND,
    LONGEST_HINT_SECONDS,
    OVERBOOKING,
    SHORTEST_HINT_SECONDS,
    WAITING_STARTS,
    Admission,
    RetryHints,
)
from streams.api import Overloaded
from tests.streams.fakes import HandClock


def lagging(limit: int, lag: int) -> Admission:
    """Partition 3, folded up to 100, with `lag` unfolded records."""
    admission = Admission(limit, HandClock())
    admission.taken(3, 100)
    if lag:
        admission.appended(3, 100 + lag - 1)
    return admission


def test_a_start_is_accepted_below_the_limit() -> None:
    admission = lagging(limit=5, lag=4)
    with admission.start(3, 100), admission.appending(3):
        assert admission.lag(3, 100) == 5
    assert admission.lag(3, 100) == 4


def test_a_start_is_refused_with_a_hint_at_the_limit() -> None:
    # specification 22.6
    with pytest.raises(Overloaded, match="partition 3 has 5 records") as refused, lagging(5, 5).start(3, 100):
        raise AssertionError("taken")
    assert SHORTEST_HINT_SECONDS <= refused.value.retry_after_seconds <= LONGEST_HINT_SECONDS


def test_records_on_their_way_to_the_log_count() -> None:
    """All records of a burst are sent before the first is acknowledged."""
    admission = lagging(limit=2, lag=0)
    with admission.appending(3), admission.appending(3), pytest.raises(Overloaded), admission.start(3, 100):
        raise AssertionError("taken")
    with admission.start(3, 100):
        pass


def test_starts_are_accepted_again_after_folding_and_in_other_partitions_always() -> None:
    admission = lagging(limit=5, lag=9)
    with admission.start(2, 0), admission.start(3, 109 - 4):
        pass


def test_zero_sets_no_limit() -> None:
    with lagging(0, 1_000_000).start(3, 100):
        pass


def test_a_new_take_over_replaces_the_known_log_end() -> None:
    """A recreated log is shorter than the old one."""
    admission = lagging(limit=5, lag=50)
    admission.taken(3, 2)
    assert admission.lag(3, 0) == 2


def test_acknowledgements_out_of_order_do_not_lower_the_log_end() -> None:
    admission = lagging(limit=5, lag=4)
    admission.appended(3, 101)
    assert admission.lag(3, 100) == 4


def test_waiting_starts_are_bounded_at_any_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a call; an answered one makes room."""
    # specification 22.6
    monkeypatch.setattr(module, "WAITING_STARTS", 1)
    admission = lagging(limit=0, lag=0)
    with admission.start(3, 100), pytest.raises(Overloaded, match="1 starts wait"), admission.start(2, 0):
        raise AssertionError("taken")
    with admission.start(2, 0):
        pass


def test_every_start_is_refused_unread_while_too_many_calls_are_unanswered() -> None:
    admission = lagging(limit=5, lag=0)
    assert admission.overload(WAITING_STARTS - 1, [(3, 100)]) is None
    refused = admission.overload(WAITING_STARTS, [(3, 100)])
    assert refused is not None
    assert refused.retry_after_seconds >= SHORTEST_HINT_SECONDS


def test_every_start_is_refused_unread_while_every_partition_lags() -> None:
    """A partition without lag may be the start's own, and the lag of other workers' partitions is unknown."""
    admission = lagging(limit=5, lag=5)
    assert admission.overload(0, [(3, 100)]) is not None
    assert admission.overload(0, [(2, 0), (3, 100)]) is None
    assert admission.overload(0, None) is None


def test_hints_spread_refused_callers_at_the_rate_of_answers() -> None:
    """The first hint is short and each next one longer, so that callers refused together do not return together."""
    retry_hints = RetryHints(HandClock())
    hints = [retry_hints.seconds() for _ in range(int(LEAST_STARTS_PER_SECOND * OVERBOOKING) + 1)]
    assert hints[0] == SHORTEST_HINT_SECONDS
    assert hints == sorted(hints)
    assert hints[-1] - hints[0] == pytest.approx(1.0)


async def test_hints_are_shorter_when_more_starts_are_answered() -> None:
    def spread() -> float:
        first, *_, last = [retry_hints.seconds() for _ in range(100)]
        return last - first

    clock = HandClock()
    retry_hints = RetryHints(clock)
    before = spread()
    for _ in range(10_000):
        retry_hints.answered()
    await clock.advance(2.0)
    assert spread() < before / 5


def test_a_hint_is_never_longer_than_the_longest() -> None:
    retry_hints = RetryHints(HandClock())
    asked = int(LONGEST_HINT_SECONDS * LEAST_STARTS_PER_SECOND * OVERBOOKING) + 1_000
    hints = [retry_hints.seconds() for _ in range(asked)]
    assert max(hints) <= LONGEST_HINT_SECONDS
    assert hints[-1] == pytest.approx(LONGEST_HINT_SECONDS)
