"""The diagnosis of one ceremony: verdict, awaited things with reasons, and the command that helps."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace

from tables.diagnosis import OVERDUE_MS, CeremonyDiagnosis, CeremonyVerdict, diagnose, verdict_of
from tables.fold.retention import stub_of
from tables.guards import RefusedCheck
from tables.instance import Instance, Phase, Timer
from tests.tables.world import BEGIN, World, definition_of

BODY = """
inputs: {required: [a]}
states:
  - {id: TALK, description: t, initial: true}
  - {id: ASK, description: a}
  - {id: DONE, description: d, terminal: true}
  - {id: LOST, description: l, terminal: true}
transitions:
  - {from: TALK, to: ASK, trigger: talked, guards: [good], description: d}
  - {from: ASK, to: DONE, trigger: finish, guards: [agreed], description: d}
  - {from: ASK, to: LOST, trigger: lose, description: d}
guards:
  good: {check: "step_status:talk:COMPLETED"}
  agreed: {type: human, check: the owner agrees, role: OWNER}
steps:
  - {id: talk, state: TALK, handler: deliberation_step, config: {prompt: talk, role: DEV, num_agents: 2},
     retry: {max_attempts: 2, backoff_seconds: 10}}
  - {id: gate, state: ASK, handler: human_gate_step, config: {role: OWNER, message: Good?, quorum: 2},
     on_failure: lose}
"""
OWNER = """
roles:
  - {id: OWNER, description: o, allowed_actions: [gate]}
  - {id: DEV, description: d, allowed_actions: [talk]}
"""


@pytest.fixture
def world() -> World:
    world = World(definition_of(BODY + OWNER))
    world.start(a=1)
    return world


def look(world: World, row: Instance | None = None) -> CeremonyDiagnosis:
    return diagnose(row or world.live, world.definition, world.now)


def attempt(found: CeremonyDiagnosis) -> str:
    (wait,) = [wait for wait in found.waits if wait.kind in ("attempt", "gate")]
    assert (wait.since, wait.due) != (0, 0)
    return wait.message


def test_an_attempt_names_the_awaited_answer(world: World) -> None:
    found = look(world)
    assert found.verdict is CeremonyVerdict.MOVING
    assert attempt(found) == "attempt 1: requested of the agent of deliberation_step; its first word is awaited"
    world.outcome("talk", "submitted", deliberation_id="d-1")
    world.result("talk", "agent-dev-001")
    assert attempt(look(world)) == (
        "attempt 1: the Ray executor has it as d-1; 1 of 2 agents have answered on NATS; awaited: agent-dev-002"
    )


def test_an_unreachable_neighbour_and_a_back_off_show_the_time_of_the_next_request(world: World) -> None:
    world.outcome("talk", "unreachable", error_code="ray_executor_unreachable", error_message="no route")
    found = look(world)
    assert "out of reach (ray_executor_unreachable: no route), asked once; it is asked again" in attempt(found)
    assert {wait.subject: wait.due for wait in found.waits}["talk"] == BEGIN + 1000
    world.failed("talk")
    found = look(world)
    assert attempt(found) == "attempt 1: failed (boom: boom happened); the next attempt begins then"
    assert {wait.subject: wait.due for wait in found.waits}["retry/talk"] == BEGIN + 10_000


def test_each_way_out_gives_the_reason_why_a_guard_does_not_hold(world: World) -> None:
    # specification 14.14
    (way,) = look(world).ways_out
    (guard,) = way.guards
    assert (way.trigger, guard.guard, guard.holds) == ("talked", "good", False)
    assert guard.reason == "step `talk` is IN_PROGRESS"


def test_the_diagnosis_gives_the_command_that_decides(world: World) -> None:
    world.outcome("talk", "submitted")
    world.result("talk", "agent-dev-001")
    world.result("talk", "agent-dev-002")
    world.opened("gate")
    found = look(world)
    assert found.verdict is CeremonyVerdict.WAITING_FOR_HUMAN
    assert "the role OWNER decides: Good?, 0 of 2 approvals" in attempt(found)
    assert found.todo == ("ceremony approve c1:s1 gate --role OWNER", "ceremony approve c1:s1 agreed --role OWNER")
    agreed, lose = (way.guards[0].reason for way in found.ways_out)
    assert (agreed, lose) == ("it waits for an approval by the role OWNER", "taken when gate fails for good")


def test_a_paused_ceremony_shows_its_actor_and_the_remaining_time_of_its_timers(world: World) -> None:
    world.wait(5)
    world.pause(actor="ana", reason="lunch")
    world.wait(100)
    found = look(world)
    assert (found.verdict, found.message, found.todo) == (
        CeremonyVerdict.PAUSED,
        "paused by ana: lunch",
        ("ceremony resume c1:s1",),
    )
    assert found.since == BEGIN + 5000
    timers = {wait.subject: wait for wait in found.waits if wait.kind == "timer"}
    assert (timers["timeout/talk"].due, timers["timeout/talk"].message) == (0, "stands still; 3595 s remain")
    assert timers["ceremony_max"].due > 0


def test_a_failed_ceremony_names_the_step_to_retry_and_the_role() -> None:
    world = World(definition_of(BODY + OWNER.replace("[gate]", "[gate, talk]")))
    world.start(a=1)
    world.failed("talk", retryable=False)
    found = look(world)
    assert found.verdict is CeremonyVerdict.FAILED
    assert found.todo == ("ceremony retry c1:s1 talk --role OWNER",)
    assert found.waits == ()


def test_a_timer_due_long_ago_is_overdue(world: World) -> None:
    world.now = world.live.timers["timeout/talk"].due + OVERDUE_MS
    assert look(world).verdict is CeremonyVerdict.MOVING
    world.now += 1
    found = look(world)
    assert (found.verdict, found.since) == (CeremonyVerdict.OVERDUE, world.live.timers["timeout/talk"].due)
    assert "timeout/talk" in found.message
    world.pause()
    world.now += 10_000_000
    assert look(world).verdict is CeremonyVerdict.PAUSED


def test_a_live_ceremony_that_waits_for_nothing_is_stuck(world: World) -> None:
    """The fold never makes such a row, so the test makes it."""
    steps = {step_id: replace(step, phase=Phase.NONE) for step_id, step in world.live.steps.items()}
    row = replace(world.live, steps=steps, timers={"ceremony_max": Timer(2**50)})
    found = look(world, row)
    assert found.verdict is CeremonyVerdict.STUCK
    assert "ceremony cancel c1:s1" in found.todo


def test_without_a_readable_definition_the_row_is_diagnosed(world: World) -> None:
    found = diagnose(world.live, None, world.now)
    assert (found.verdict, found.ways_out) == (CeremonyVerdict.STUCK, ())
    assert "cannot read its pinned definition" in found.message
    assert "definition" in found.todo[0]
    assert [wait.kind for wait in found.waits] == ["attempt", "timer", "timer"]


def test_a_guard_that_this_release_refuses_is_named(world: World) -> None:
    # specification 24.4
    good = dataclasses.replace(world.definition.guards["good"], expression=RefusedCheck("bad_expression"))
    guards = {**world.definition.guards, "good": good}
    found = diagnose(world.live, dataclasses.replace(world.definition, guards=guards), world.now)
    assert found.todo == (
        "guard `good` never holds: this release refuses its check (bad_expression); start a new ceremony",
    )


def test_the_stub_of_a_failed_ceremony_has_ended(world: World) -> None:
    world.failed("talk", retryable=False)
    found = look(world, stub_of(world.live, world.now, 0))
    assert (found.verdict, found.todo) == (CeremonyVerdict.ENDED, ())
    assert diagnose(stub_of(world.live, world.now, 0), None, world.now).todo == ()


def test_an_ended_ceremony_waits_for_nothing(world: World) -> None:
    world.cancel()
    found = look(world)
    assert (found.verdict, found.waits, found.ways_out, found.todo) == (CeremonyVerdict.ENDED, (), (), ())
    assert verdict_of(world.live, world.definition, 0) is CeremonyVerdict.ENDED


def test_a_row_ahead_of_the_clock_names_the_brokers_clocks() -> None:
    # specification 18.14
    world = World(definition_of(BODY + OWNER))
    world.now += 86_400_000
    world.start(a=1)
    found = diagnose(world.live, world.definition, world.now - 86_400_000)
    assert "its last change is stamped 86,400 s ahead of the log's clock: see the clocks of the brokers" in found.todo
    assert not diagnose(world.live, world.definition, world.now).todo
