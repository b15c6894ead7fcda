"""However many calls to a neighbour fail, its outage is a handful of lines, with counts by code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from streams.outages import CALLS_SETTLE_SECONDS, SUMMARY_SECONDS, UNSTEADY_SECONDS, NeighbourOutage
from tests.streams.fakes import HandClock

Lines = list[Any]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with structlog.testing.capture_logs() as logs:
        yield logs


def test_an_outage_of_thousands_of_failing_calls_is_a_handful_of_lines(lines: Lines) -> None:
    # specification 30.6
    clock = HandClock()
    outage = NeighbourOutage("ray_executor", clock, "steps wait", settle_seconds=CALLS_SETTLE_SECONDS)
    for number in range(150 * 60):
        clock.seconds += 1 / 60
        outage.failed("ray_deadline_exceeded" if number % 10 == 0 else "ray_unavailable", "ray:50056 gave no answer")
    outage.answered()
    clock.seconds += CALLS_SETTLE_SECONDS
    outage.tick()
    assert [line["event"] for line in lines] == [
        "neighbour_fails",
        "neighbour_still_fails",
        "neighbour_still_fails",
        "neighbour_back",
    ]
    assert all(line["log_level"] == "warning" and line["neighbour"] == "ray_executor" for line in lines)
    assert (lines[0]["code"], lines[0]["reason"]) == ("ray_deadline_exceeded", "ray:50056 gave no answer")
    assert sum(lines[1]["failures"].values()) == pytest.approx(60 * SUMMARY_SECONDS, abs=60)
    assert lines[3]["failures"] == {"ray_deadline_exceeded": 900, "ray_unavailable": 8100}
    assert lines[3]["seconds"] == 150


def test_a_call_that_succeeds_among_failing_ones_ends_no_outage(lines: Lines) -> None:
    clock = HandClock()
    outage = NeighbourOutage("ray_executor", clock, "steps wait", settle_seconds=CALLS_SETTLE_SECONDS)
    for _ in range(200):
        outage.failed("ray_unavailable", "no answer")
        clock.seconds += 0.1
        outage.answered()
        clock.seconds += 0.1
    assert [line["event"] for line in lines] == ["neighbour_fails"]


def test_an_unsteady_neighbour_has_to_work_for_a_minute(lines: Lines) -> None:
    """A connection that is lost and made again every second writes no line every second."""
    # specification 30.6
    clock = HandClock()
    outage = NeighbourOutage("nats", clock, "events wait")
    for _ in range(120):
        outage.failed("nats_disconnected", "lost")
        clock.seconds += 0.5
        outage.answered()
        clock.seconds += 0.5
    events = [line["event"] for line in lines]
    assert events == ["neighbour_fails", "neighbour_back", "neighbour_fails", "neighbour_still_fails"]
    clock.seconds += UNSTEADY_SECONDS
    outage.tick()
    assert lines[-1]["event"] == "neighbour_back" and lines[-1]["failures"] == {"nats_disconnected": 119}


def test_while_it_works_nothing_is_written(lines: Lines) -> None:
    outage = NeighbourOutage("nats", HandClock(), "events wait")
    outage.answered()
    outage.tick()
    assert lines == [] and not outage.under_way
