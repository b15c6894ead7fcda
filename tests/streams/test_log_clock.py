"""The log's clock: the last append time seen, plus the monotonic time since."""

from __future__ import annotations

from streams.log_clock import LogClock
from tests.streams.fakes import HandClock


def test_the_clock_is_zero_before_the_first_append_time() -> None:
    clock = LogClock(HandClock())
    assert (clock.now(), clock.age()) == (0, float("inf"))


def test_the_clock_advances_with_the_hosts_monotonic_clock() -> None:
    # specification 18.6
    hand = HandClock()
    clock = LogClock(hand)
    clock.acknowledged(5_000)
    hand.seconds += 1.5
    assert (clock.now(), clock.age()) == (6_500, 1.5)


def test_an_acknowledged_append_sets_the_clock_even_backwards() -> None:
    hand = HandClock()
    clock = LogClock(hand)
    clock.acknowledged(5_000)
    hand.seconds += 10
    clock.acknowledged(6_000)
    assert clock.now() == 6_000


def test_a_record_that_was_read_never_sets_the_clock_back() -> None:
    hand = HandClock()
    clock = LogClock(hand)
    clock.acknowledged(5_000)
    clock.observe(4_000)
    assert clock.now() == 5_000
    clock.observe(7_000)
    assert clock.now() == 7_000


DAY = 86_400_000


def test_one_append_time_far_ahead_counts_only_when_the_next_agrees() -> None:
    # specification 18.14
    hand = HandClock()
    clock = LogClock(hand)
    clock.acknowledged(5_000)
    clock.acknowledged(DAY)
    assert (clock.now(), clock.age()) == (5_000, float("inf"))
    hand.seconds += 1
    clock.acknowledged(6_000)
    assert (clock.now(), clock.age()) == (6_000, 0)
    assert clock.ahead == (DAY - 5_000, 6_000)


def test_two_append_times_that_agree_set_the_clock_forward() -> None:
    """After a laptop has slept its monotonic clock is behind the log's."""
    hand = HandClock()
    clock = LogClock(hand)
    clock.acknowledged(5_000)
    clock.acknowledged(DAY)
    hand.seconds += 1
    clock.acknowledged(DAY + 1_000)
    assert (clock.now(), clock.ahead) == (DAY + 1_000, None)


def test_a_clock_set_back_by_far_was_ahead_before() -> None:
    hand = HandClock()
    clock = LogClock(hand)
    partition = LogClock(hand, report=clock)
    partition.acknowledged(DAY)
    partition.acknowledged(5_000)
    assert (partition.now(), partition.set_backs) == (5_000, 1)
    assert clock.ahead == (DAY - 5_000, 5_000), "the clock of the worker knows it"


def test_old_records_read_before_the_first_acknowledgement_need_no_confirmation() -> None:
    clock = LogClock(HandClock())
    clock.observe(5_000)
    clock.observe(DAY)
    assert clock.now() == DAY
    clock.acknowledged(2 * DAY)
    assert (clock.now(), clock.ahead) == (2 * DAY, None)
