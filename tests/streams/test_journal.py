"""The journal of the fold: which lines a batch gives, and what is left out and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from ports.lines import LineLevel, LogLine
from streams import journal
from streams.folded import Folded
from streams.journal import MOST_CODES, MOST_LINES_A_SECOND, MOST_WARNINGS, Journal
from tables.commands import AnyCommand
from tables.definition import Definition
from tables.fold.decide import Decision
from tests.streams.fakes import HandClock, settle
from tests.tables.world import World, definition_of

BODY = """
inputs: {required: [score]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: GOOD, description: g, terminal: true}
  - {id: POOR, description: p, terminal: true}
transitions:
  - {from: RUN, to: GOOD, trigger: praise, guards: [done, high], description: d}
  - {from: RUN, to: POOR, trigger: blame, guards: [done, typo, signed], description: d}
guards:
  done: {check: 'step_status:one:COMPLETED'}
  high: {check: 'cel:inputs.score > 7'}
  typo: {check: 'cel:inputs.scope > 7'}
  signed: {type: human, role: BOSS, check: signed}
roles:
  - {id: BOSS, description: b}
retry_policies: {default: {max_attempts: 2, backoff_seconds: 1}}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [score], aggregation_type: list}}
"""


class Lines:
    """A sink that keeps its lines."""

    def __init__(self, level: LineLevel | None = LineLevel.INFO) -> None:
        self.level = level
        self.lines: list[LogLine] = []
        self.writes = 0

    def wants(self, level: LineLevel) -> bool:
        return self.level in (LineLevel.INFO, level)

    def write(self, lines: Sequence[LogLine]) -> None:
        self.writes += 1
        self.lines += lines

    def named(self, event: str) -> list[LogLine]:
        return [line for line in self.lines if line["event"] == event]


class Told(World):
    """A world whose commands are kept as they were folded."""

    def __init__(self, definition: Definition) -> None:
        self.folded: list[Folded] = []
        super().__init__(definition)

    def fold(self, command: AnyCommand) -> Decision:
        before = self.row
        decision = super().fold(command)
        self.folded.append(
            Folded(before, decision.row, self.definition, decision.effects, decision.evaluations, decision.unjudged)
        )
        return decision


@pytest.fixture(scope="module")
def probe() -> Definition:
    return definition_of(BODY)


def test_a_ceremony_is_told_from_its_start_to_its_end(probe: Definition) -> None:
    # specification 30.1
    world, lines = Told(probe), Lines()
    world.start(score=9)
    world.wait(2.5)
    world.done("one")
    Journal(lines, HandClock()).write(world.folded)
    assert lines.writes == 1
    shared = {"instance": "c1:s1", "definition": "probe", "correlation_id": "corr-1"}
    assert all(shared.items() <= line.items() for line in lines.lines)
    assert [(line["event"], line["version"]) for line in lines.lines] == [
        ("ceremony.started", 1),
        ("transition_judged", 1),
        ("transition_judged", 1),
        ("step_started", 1),
        ("ceremony.step.executed", 2),
        ("transition_judged", 2),
        ("ceremony.transition.applied", 2),
        ("ceremony.completed", 2),
    ]
    (executed,) = lines.named("ceremony.step.executed")
    assert {"step": "one", "attempt": 1, "status": "COMPLETED", "duration_ms": 2500}.items() <= executed.items()
    *early, judged = lines.named("transition_judged")
    assert [(line["trigger"], line["holds"]) for line in early] == [("praise", False), ("blame", False)]
    assert judged["holds"] is True and judged["trigger"] == "praise"
    assert [(guard["guard"], guard["result"]) for guard in judged["guards"]] == [("done", "true"), ("high", "true")]


def test_every_guard_of_a_judged_transition_has_a_result_and_a_reason(probe: Definition) -> None:
    # specification 30.1
    world, lines = Told(probe), Lines()
    world.start(score=5)
    world.done("one")
    Journal(lines, HandClock()).write(world.folded)
    high, blame = lines.named("transition_judged")[2:]
    assert (high["holds"], blame["holds"]) == (False, False)
    assert [(guard["guard"], guard["result"], guard["reason"]) for guard in blame["guards"]] == [
        ("done", "true", "step `one` is COMPLETED"),
        ("typo", "failed", 'cel_failed: the expression fails on these values (Key not found in map : "scope")'),
        ("signed", "not_judged", "an earlier guard does not hold"),
    ]
    assert [guard["result"] for guard in high["guards"]] == ["true", "false"]
    (unjudged,) = lines.named("guard_unjudged")
    assert (unjudged["guard"], unjudged["level"]) == ("typo", "warning")


def test_a_transition_without_guards_names_the_step_that_it_waits_for() -> None:
    body = """
states: [{id: RUN, description: r, initial: true}, {id: END, description: e, terminal: true}]
transitions: [{from: RUN, to: END, trigger: go, description: d}]
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [ceremony_id], aggregation_type: list}}
  - {id: two, state: RUN, handler: aggregation_step, config: {sources: [story_id], aggregation_type: list}}
"""
    world, lines = Told(definition_of(body)), Lines()
    world.start()
    world.done("one")
    world.done("two")
    Journal(lines, HandClock()).write(world.folded)
    _, first, second = lines.named("transition_judged")
    assert (first["holds"], first["reason"]) == (False, "step `two` is not COMPLETED")
    assert second["holds"] is True and "reason" not in second


def test_no_field_is_none_or_empty_and_no_line_has_data_of_clients(probe: Definition) -> None:
    # specification 30.1
    world, lines = Told(probe), Lines()
    world.start(score={"secret plan": "take over"})
    world.done("one", {"what": "take over"})
    world.cancel()
    Journal(lines, HandClock()).write(world.folded)
    assert all(value not in (None, "") for line in lines.lines for value in line.values())
    assert b"take over" not in msgspec.json.encode(lines.lines)


def test_a_retry_is_a_warning_with_code_and_duration_and_a_second_start(probe: Definition) -> None:
    world, lines = Told(probe), Lines()
    world.start(score=1)
    world.wait(1)
    world.failed("one", "boom", retryable=True)
    world.wait(5)
    world.fire("retry/one")
    Journal(lines, HandClock()).write(world.folded)
    (retrying,) = lines.named("ceremony.step.retrying")
    expected = {"level": "warning", "code": "boom", "reason": "boom happened", "attempt": 1, "duration_ms": 1000}
    assert expected.items() <= retrying.items()
    assert [line["attempt"] for line in lines.named("step_started")] == [1, 2]


def test_at_level_warning_ordinary_life_is_silent_and_failures_are_not(probe: Definition) -> None:
    # specification 30.2
    world, lines = Told(probe), Lines(LineLevel.WARNING)
    world.start(score=9)
    world.pause(reason="lunch")
    world.resume()
    world.done("one")
    Journal(lines, HandClock()).write(world.folded)
    assert lines.writes == 0
    other = Told(probe)
    other.start(score=9)
    other.failed("one", "broken", retryable=False)
    Journal(lines, HandClock()).write(other.folded)
    assert [line["event"] for line in lines.lines] == ["ceremony.step.executed", "ceremony.failed"]
    nothing = Lines(None)
    Journal(nothing, HandClock()).write(other.folded)
    assert nothing.writes == 0


async def test_an_outage_of_thousands_of_failing_attempts_is_a_handful_of_lines_and_a_count_each_minute(
    probe: Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt fails, and is tried again: at level INFO, where every start of an attempt has a line."""
    # specification 30.4
    clock, lines = HandClock(), Lines()
    told = Journal(lines, clock)
    world = Told(probe)
    world.start(score=1)
    world.folded.clear()
    world.failed("one", "ray_refused", retryable=True)
    world.wait(5)
    world.fire("retry/one")
    monkeypatch.setattr(journal, "MOST_LINES_A_SECOND", 10**6)  # the bound on failures alone is tested
    for _ in range(180):
        for _ in range(30):
            told.write(world.folded)
        clock.seconds += 1
        told.report()
    told.report(ending=True)
    retrying = lines.named("ceremony.step.retrying")
    left_out = [line for line in lines.named("lines_left_out") if line["level"] == "warning"]
    assert len(retrying) == 3 * MOST_WARNINGS
    assert len(left_out) == 3
    assert left_out[0]["lines"] == {"ceremony.step.retrying ray_refused": 30 * 60 - MOST_WARNINGS}
    assert sum(line["count"] for line in left_out) + len(retrying) == 180 * 30
    starts = lines.named("step_started")
    info = [line for line in lines.named("lines_left_out") if line["level"] == "info"]
    assert sum(line["lines"]["step_started"] for line in info) + len(starts) == 180 * 30
    assert len(lines.lines) <= 3 * 2 * MOST_WARNINGS + len(left_out) + len(info)


async def test_lines_above_the_bound_are_left_out_by_kind_and_counted(probe: Definition) -> None:
    # specification 30.3
    clock, lines = HandClock(), Lines()
    told = Journal(lines, clock)
    world = Told(probe)
    world.start(score=9)
    world.done("one")
    each = 8
    times = MOST_LINES_A_SECOND // each * 2
    for _ in range(times):
        told.write(world.folded)
    told.report(ending=True)
    (left_out,) = lines.named("lines_left_out")
    assert left_out["count"] + len(lines.lines) - 1 == times * each
    assert left_out["level"] == "info" and left_out["lines"].keys() == {line["event"] for line in lines.lines[:-1]}
    assert MOST_LINES_A_SECOND - each <= len(lines.lines) - 1 <= MOST_LINES_A_SECOND + each
    clock.seconds += 1
    before = len(lines.lines)
    told.write(world.folded)
    assert len(lines.lines) == before + each


def test_made_up_codes_bring_no_more_kinds_than_a_bound(probe: Definition) -> None:
    """An agent may fail with any code."""
    lines = Lines(LineLevel.WARNING)
    told = Journal(lines, HandClock())
    for number in range(2 * MOST_CODES):
        world = Told(probe)
        world.start(score=1)
        world.folded.clear()
        world.failed("one", f"code_{number}", retryable=True)
        told.write(world.folded)
    told.report(ending=True)
    left_out: Any = lines.named("lines_left_out")[0]["lines"]
    assert left_out == {"ceremony.step.retrying others": MOST_CODES - MOST_WARNINGS}


async def test_the_last_report_is_written_when_the_worker_stops(probe: Definition) -> None:
    clock, lines = HandClock(), Lines(LineLevel.WARNING)
    told = Journal(lines, clock)
    world = Told(probe)
    world.start(score=1)
    world.failed("one", "boom", retryable=True)
    for _ in range(10):
        told.write(world.folded)
    running = clock.spawn(told.run(), name="journal")
    await settle()
    running.cancel()
    await asyncio.wait({running})
    assert lines.lines[-1]["lines"] == {"ceremony.step.retrying boom": 10 - MOST_WARNINGS}
