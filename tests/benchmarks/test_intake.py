"""Starts through the front are counted by answer or by due time, without the first second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import pytest

from tests.benchmarks import intake_figures
from tests.benchmarks.intake import IntakeRun, Phase
from tests.benchmarks.intake_load import Callers, Measured, Options, counted
from tests.benchmarks.layouts import ONE, Layout, parse_layouts

BEGAN, WALL = 100.0, 1_700_000_000.0


def options(*, callers: int = 0, rate: float = 0.0) -> Options:
    return Options(addresses=[], definition="approval", name="n", seconds=3, skip_seconds=1, callers=callers, rate=rate)


def count(answered: Iterable[tuple[float, float]], given: Options) -> Measured:
    """Count calls; `answered` has (due, answered) in seconds since the phase began."""
    calls = [(BEGAN + due, BEGAN + answer) for due, answer in answered]
    return counted(calls, {}, given, BEGAN, WALL, 0.5)


def test_callers_count_answers_between_the_first_second_and_the_end() -> None:
    found = count([(0.5, 0.9), (0.9, 1.0), (2.0, 2.3), (2.9, 3.1)], options(callers=4))
    assert found.accepted == 2
    assert [found.per_s, found.p50_ms, found.p99_ms] == pytest.approx([1.0, 100, 300])
    assert (found.began, found.ended) == (WALL + 1, WALL + 3)


def test_at_a_rate_late_answers_count_with_their_whole_wait() -> None:
    found = count([(1.0, 1.1), (2.9, 6.0)], options(rate=1))
    assert found.accepted == 2
    assert found.p99_ms == pytest.approx(3100)
    assert found.behind_s == pytest.approx(3)
    assert found.per_s == pytest.approx(2 / 5)


def test_a_phase_without_an_accepted_start_lists_the_failures() -> None:
    with pytest.raises(ValueError, match="no start was accepted in time"):
        count([(0.5, 0.6)], options(callers=4))


def phase(asked: float | None, per_s: float, behind_s: float = 0.0, **failed: int) -> Phase:
    measured = Measured(
        began=0, ended=1, accepted=int(per_s), behind_s=behind_s, failed=failed, p50_ms=8, p99_ms=40, cpu_cores=0.6
    )
    return Phase(asked, measured, 250.0)


@pytest.mark.parametrize(
    ("one", "kept"),
    [
        (phase(None, 2500), True),
        (phase(1500, 1490, 0.2), True),
        (phase(1500, 1400, 2.0), False),
        (phase(1500, 1500, UNAVAILABLE=1), False),
    ],
)
def test_a_rate_is_sustained_if_the_last_answers_came_soon_and_no_call_failed(one: Phase, kept: bool) -> None:  # noqa: FBT001
    assert intake_figures.sustained(one) is kept


def test_the_table_shows_the_callers_cpu_and_marks_a_rate_that_was_too_high() -> None:
    run = IntakeRun("approval", ONE, 256, phase(None, 2400), phase(1200, 1200), phase(1500, 900, 6.5, UNAVAILABLE=7))
    most, half, wanted = intake_figures.rows([run])
    assert most.figure == "2,400"
    assert "256 callers" in most.how
    assert "the callers took 0.60 cores" in most.how
    assert (half.what, half.figure) == ("starts of approval, 1 worker, 1,200 a second: ms p50 / p99", "8.00 / 40.0")
    assert wanted.how.startswith("not sustained: 6.50 s behind at the end; ")
    assert wanted.how.endswith("; 7 times UNAVAILABLE")


def test_the_layout_with_most_starts_of_the_first_definition_counts() -> None:
    two = parse_layouts("2")[0]

    def run(definition: str, layout: Layout, per_s: float) -> IntakeRun:
        return IntakeRun(definition, layout, 128, phase(None, per_s), phase(per_s / 2, per_s / 2), phase(1500, 1500))

    runs = [run("approval", ONE, 2000), run("approval", two, 2600), run("merge_chain", two, 9000)]
    found = intake_figures.summary(runs)
    assert (found["starts_per_s"], found["starts_served_by"]) == (2600, "2 workers")
    assert list(found["intake"]) == ["approval, 1 worker", "approval, 2 workers", "merge_chain, 2 workers"]


class Clients(Callers):
    """Callers of which every call takes a fixed time of the loop's clock."""

    def __init__(self, given: Options, takes: float) -> None:
        super().__init__(given, [])
        self.due: list[float] = []
        self._takes = takes

    async def call(self, due: float) -> None:
        self.due.append(due)
        await asyncio.sleep(self._takes)


async def test_calls_are_sent_at_the_rate_though_earlier_ones_are_unanswered() -> None:
    callers = Clients(options(rate=100), takes=0.5)
    began = time.perf_counter()
    await callers.at_a_rate(began, began + 0.3)
    assert callers.due == pytest.approx([began + number / 100 for number in range(len(callers.due))])
    assert 25 <= len(callers.due) <= 31


async def test_each_caller_waits_for_its_answer_before_it_calls_again() -> None:
    callers = Clients(options(callers=3), takes=0.1)
    await callers.as_fast_as_it_goes(time.perf_counter() + 0.25)
    assert 3 <= len(callers.due) <= 9
