"""Invariants find broken rows, the next row refuses them, and `waiting_for` lists the awaited things."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tables.diagnosis import waiting_for
from tables.errors import InvariantBroken
from tables.fold.next_row import NextRow
from tables.instance import AgentAnswer, CeremonyStatus, Instance, Phase, StepState, StepStatus, Timer
from tables.invariants import broken, broken_change
from tests.tables.world import BEGIN, World, definition_of

DEFINITION = definition_of(
    """
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: ASK, description: a}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: ASK, trigger: go, description: f}
  - {from: ASK, to: DONE, trigger: finish, guards: [agreed], description: f}
guards:
  agreed: {type: human, check: somebody agrees}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list},
     retry: {max_attempts: 2}}
  - {id: two, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
"""
)


@pytest.fixture
def row() -> Instance:
    world = World(DEFINITION)
    world.start(a=1)
    return world.live


def step(row: Instance, **change: Any) -> Instance:
    return replace(row, steps=row.steps | {"one": replace(row.steps["one"], **change)})


def test_a_sound_row_breaks_no_invariant(row: Instance) -> None:
    assert broken(row, DEFINITION) == []


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (lambda r: replace(r, state="NOWHERE"), "state 'NOWHERE' is not in its definition"),
        (lambda r: replace(r, state="DONE"), "status is RUNNING in state DONE"),
        (lambda r: replace(r, status=CeremonyStatus.CANCELLED), "status is CANCELLED, ended_at 0"),
        (lambda r: replace(r, status=CeremonyStatus.PAUSED), "status is PAUSED, paused_at 0"),
        (lambda r: replace(r, updated_at=BEGIN - 1), "updated_at lies before created_at"),
        (lambda r: replace(r, version=0), "version is 0"),
        (lambda r: replace(r, size=r.size + 1), "its parts make"),
        (lambda r: replace(r, command_ids=("x",) * 65), "65 command ids are kept"),
        (lambda r: replace(r, timers={}), "without timer timeout/one"),
        (lambda r: replace(r, timers=r.timers | {"gate/one": Timer(1, 1)}), "timer gate/one of no live attempt"),
        (lambda r: replace(r, timers=r.timers | {"timeout/one": Timer(1, 7)}), "attempt 7, the live one is 1"),
        (lambda r: replace(r, timers=r.timers | {"expire": Timer(1)}), "has ceremony_max and not expire"),
        (lambda r: replace(r, steps={}), "its steps are not those of its definition"),
        (lambda r: replace(r, visits={"X": 1}), "visited state 'X' is not in its definition"),
        (lambda r: replace(r, guard_approvals={"x": ()}), "guard 'x' is not in its definition"),
        (lambda r: replace(r, selected=("x",)), "it selects steps that its definition does not have"),
        (lambda r: replace(r, definition_hash="x"), "it is pinned to another definition"),
        (lambda r: step(r, output=1), "IN_PROGRESS has an output"),
        (lambda r: step(r, phase=Phase.GATE), "IN_PROGRESS in phase 'gate'"),
        (lambda r: step(r, status=StepStatus.FAILED, phase=Phase.NONE), "FAILED without a code"),
        (lambda r: step(r, status=StepStatus.COMPLETED, answers={"a": AgentAnswer()}), "COMPLETED keeps answers"),
        (lambda r: replace(r, state="ASK"), "in a state that was left"),
    ],
)
def test_each_broken_invariant_is_named(row: Instance, bend: Any, reason: str) -> None:
    assert any(reason in line for line in broken(bend(row), DEFINITION)), broken(bend(row), DEFINITION)


def test_from_one_row_to_the_next_version_and_time_rise_and_terminal_stays_terminal(row: Instance) -> None:
    # specification 12.10
    assert broken_change(row, replace(row, version=3)) == ["version went from 1 to 3"]
    assert broken_change(row, replace(row, version=2, updated_at=1)) == [f"updated_at went back from {BEGIN} to 1"]
    ended = replace(row, status=CeremonyStatus.CANCELLED, ended_at=1)
    assert broken_change(ended, replace(row, version=2)) == ["CANCELLED is final, yet it became RUNNING"]
    failed = replace(row, status=CeremonyStatus.FAILED, ended_at=1)
    assert broken_change(failed, replace(row, version=2)) == []


def test_the_builder_refuses_a_row_that_breaks_an_invariant_and_leaves_the_old_one_alone(row: Instance) -> None:
    builder = NextRow(row, BEGIN)
    builder.set_step("one", StepState(status=StepStatus.FAILED))
    builder.drop_timer("timeout/one")
    with pytest.raises(InvariantBroken, match="step one: FAILED without a code") as caught:
        builder.build()
    assert caught.value.code == "invariant_broken"
    assert broken(row, DEFINITION) == []
    assert row.steps["one"].status == "IN_PROGRESS"


def test_each_wait_of_a_ceremony_is_named() -> None:
    # specification 12.11
    world = World(DEFINITION)
    world.start(a=1)
    assert waiting_for(world.live, DEFINITION) == ["step one (attempt 1): asked", "timer timeout/one"]
    world.failed("one")
    assert waiting_for(world.live, DEFINITION)[1] == "timer retry/one"
    world.fire("retry/one")
    world.done("one")
    world.done("two")
    assert waiting_for(world.live, DEFINITION) == ["guard agreed"]
    world.pause()
    assert waiting_for(world.live, DEFINITION) == ["paused", "guard agreed"]
    world.cancel()
    assert waiting_for(world.live, DEFINITION) == []


def test_a_live_row_without_timers_and_attempts_waits_for_nothing(row: Instance) -> None:
    stuck = replace(
        row, timers={"ceremony_max": row.timers["ceremony_max"]}, steps={"one": StepState(), "two": StepState()}
    )
    assert waiting_for(stuck, DEFINITION) == []
