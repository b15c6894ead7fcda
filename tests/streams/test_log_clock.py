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
