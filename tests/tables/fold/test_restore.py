"""Restoring a row from a read model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tables.commands import Origin, Restore
from tables.definition import Definition
from tables.fold.decide import Decision, decide
from tables.fold.next_row import raised
from tables.fold.restore import to_restore
from tables.instance import Instance, Timer, encode_instance
from tests.tables.world import BEGIN, ID, KINDS, World, check, definition_of, refusal

DEFINITION = definition_of(
    """
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: talk, state: RUN, handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 2}}
  - {id: gate, state: RUN, after: [], handler: human_gate_step,
     config: {role: PO, message: m, deadline_seconds: 60}}
"""
)
RETRIED = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: talk, state: RUN, handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 2},
     retry: {max_attempts: 3, backoff_seconds: 900}}
"""


@pytest.fixture
def world() -> World:
    """A world with one of two results and an open gate."""
    world = World(DEFINITION)
    world.start()
    world.outcome("talk", "submitted", deliberation_id="d")
    world.result("talk", "agent-dev-001")
    world.opened("gate")
    return world


def restored_later(saved: Instance, ms: int, definition: Definition = DEFINITION) -> Decision:
    """Restore into an empty log, so many milliseconds after the beginning."""
    command = Restore(
        instance_id=ID,
        instance=json.loads(encode_instance(to_restore(saved, saved.version))),
        seen_version=saved.version,
    )
    decision = decide(None, command, Origin(0, 5, BEGIN + ms), definition, KINDS)
    check(None, decision, definition)
    return decision


def restored(row: Instance | None, saved: Instance, **change: Any) -> Decision:
    body = json.loads(encode_instance(raised(saved, 1000, 100))) | change
    decision = decide(row, Restore(instance_id=ID, instance=body), Origin(0, 5, BEGIN + 5000), DEFINITION, KINDS)
    check(row, decision, DEFINITION)
    return decision


def test_attempts_in_flight_are_requested_again_under_raised_numbers(world: World) -> None:
    decision = restored(None, world.live)
    row = decision.row
    assert row is not None
    assert row.version == world.live.version + 1001
    assert [(request.step_id, request.attempt) for request in requests(decision)] == [("talk", 101)]
    assert (row.steps["talk"].phase, row.steps["talk"].answers) == ("asked", {})
    assert (row.steps["gate"].phase, row.steps["gate"].attempt) == ("gate", 101)
    assert row.timers["gate/gate"].attempt == 101


def requests(decision: Decision) -> list[Any]:
    return [effect for effect in decision.effects if hasattr(effect, "deadline")]


def test_a_restore_never_overwrites_a_newer_row_and_a_repeated_one_changes_nothing(world: World) -> None:
    first = restored(None, world.live)
    assert restored(first.row, world.live).note == "duplicate"
    saved = world.live
    world.decide("gate")
    assert restored(world.live, saved).row is not None
    newer = raised(world.live, 5000, 0)
    assert restored(newer, saved).row is newer


def test_a_paused_row_stays_paused_and_requests_at_the_resume(world: World) -> None:
    world.pause()
    decision = restored(None, world.live)
    assert decision.row is not None
    assert (decision.row.status, requests(decision)) == ("PAUSED", [])
    world.row = decision.row
    world.resume()
    world.fire("ask/talk")
    assert world.requests()[-1].attempt == 101


def test_an_ended_row_is_restored_as_it_is(world: World) -> None:
    world.cancel()
    decision = restored(None, world.live)
    assert decision.row is not None
    assert (decision.row.status, decision.effects) == ("CANCELLED", ())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"instance_id": "other:id"}, "restore_invalid"),
        ({"state": "NOWHERE"}, "restore_invalid"),
        ({"status": "COMPLETED"}, "restore_invalid"),
        ({"status": "DANCING"}, "restore_invalid"),
        ({"timers": {}}, "restore_invalid"),
        ({"size": 7}, "restore_invalid"),
        ({"format": 99}, "restore_invalid"),
        ({"definition_hash": "another"}, "definition_unknown"),
    ],
)
def test_a_row_with_broken_invariants_is_refused_with_all_of_them(
    world: World, change: dict[str, Any], code: str
) -> None:
    decision = restored(None, world.live, **change)
    assert (decision.row, decision.note) == (None, code)
    assert refusal(decision) == code


def test_a_restored_attempt_gets_a_new_deadline(world: World) -> None:
    """A disaster may last longer than the step's timeout; the attempt that is requested then has its whole time."""
    # specification 18.13
    later = BEGIN + 86_400_000
    row = decide(None, _restore(world.live), Origin(0, 5, later), DEFINITION, KINDS).row
    assert row is not None
    assert row.timers["timeout/talk"].due == later + 3_600_000
    assert row.steps["talk"].started_at == later


def test_a_restored_attempt_has_its_whole_time_after_a_pause(world: World) -> None:
    world.wait(3000)
    world.pause()
    world.row = restored(None, world.live).row
    world.resume()
    assert world.live.timers["timeout/talk"].due == world.now + 3_600_000


def _restore(saved: Instance) -> Restore:
    return Restore(instance_id=ID, instance=json.loads(encode_instance(raised(saved, 1000, 100))))


def test_a_row_that_is_newer_than_all_stores_stays() -> None:
    """Although the restored one has a higher number: that is raised, for other reasons."""
    # specification 28.3
    world = World(DEFINITION)
    world.start()
    saved = world.live
    world.opened("gate")
    body = json.loads(encode_instance(to_restore(saved, saved.version)))
    command = Restore(instance_id=ID, instance=body, seen_version=saved.version)
    for row in (world.live, saved):
        decision = decide(row, command, Origin(0, 5, BEGIN), DEFINITION, KINDS)
        assert (decision.row, decision.note, decision.effects) == (row, "duplicate", ())


def test_a_ceremony_that_began_later_under_the_same_id_stays() -> None:
    # specification 28.3
    old, new = World(DEFINITION), World(DEFINITION)
    old.start()
    old.opened("gate")
    new.wait(60)
    new.start()
    body = json.loads(encode_instance(to_restore(old.live, 50)))
    decision = decide(
        new.live, Restore(instance_id=ID, instance=body, seen_version=50), Origin(0, 5, BEGIN), DEFINITION, KINDS
    )
    assert (decision.row, decision.note) == (new.live, "duplicate")


def test_an_older_row_of_the_same_ceremony_is_replaced() -> None:
    """The log came back from a backup that is older than the store."""
    # specification 28.3
    world = World(DEFINITION)
    world.start()
    older = world.live
    world.opened("gate")
    body = json.loads(encode_instance(to_restore(world.live, world.live.version)))
    command = Restore(instance_id=ID, instance=body, seen_version=world.live.version)
    row = decide(older, command, Origin(0, 5, BEGIN), DEFINITION, KINDS).row
    assert row is not None and row.version == world.live.version + 1001
    assert row.steps["gate"].status == "WAITING_FOR_HUMAN"


def test_versions_are_above_the_highest_seen_in_any_store(world: World) -> None:
    # specification 28.3
    row = to_restore(world.live, 700)
    assert row.version == 1700
    assert {step.attempt for step in row.steps.values()} == {101}


@pytest.mark.parametrize("years", [0, 1, 40])
def test_a_restored_ceremony_has_the_time_that_it_had_left_however_long_after(world: World, years: int) -> None:
    """It neither times out nor fails its gate as it comes back, and then goes on to its end."""
    # specification 28.5
    ms = years * 31_536_000_000 + 5000
    before = world.live
    decision = restored_later(before, ms)
    assert decision.row is not None
    gone = BEGIN + ms - before.updated_at
    for timer_id in ("ceremony_max", "gate/gate"):
        assert decision.row.timers[timer_id].due == before.timers[timer_id].due + gone
    world.row, world.now = decision.row, BEGIN + ms
    world.outcome("talk", "submitted", deliberation_id="e")
    for agent in ("agent-dev-001", "agent-dev-002"):
        world.result("talk", agent)
    world.decide("gate")
    assert world.live.status == "COMPLETED"


def test_a_retry_that_waited_goes_on_waiting_for_its_rest() -> None:
    # specification 28.5
    definition = definition_of(RETRIED)
    world = World(definition)
    world.start()
    world.failed("talk")
    rest = world.live.timers["retry/talk"].due - world.live.updated_at
    decision = restored_later(world.live, 3_600_000, definition)
    assert decision.row is not None and rest > 0
    assert decision.row.timers["retry/talk"] == Timer(BEGIN + 3_600_000 + rest, 101)


def test_a_paused_ceremony_keeps_its_rests_and_its_time_limit_starts_again(world: World) -> None:
    # specification 28.5
    world.pause()
    decision = restored_later(world.live, 3_600_000)
    assert decision.row is not None
    assert decision.row.timers["gate/gate"].due == world.live.timers["gate/gate"].due
    assert decision.row.timers["ceremony_max"].due == world.live.timers["ceremony_max"].due + 3_600_000


def test_a_lossy_ceremony_is_restored_paused_and_goes_on_at_the_resume(world: World) -> None:
    # specification 28.4
    row = to_restore(world.live, world.live.version, "step talk reads the inputs")
    command = Restore(instance_id=ID, instance=json.loads(encode_instance(row)), seen_version=world.live.version)
    decision = decide(None, command, Origin(0, 5, BEGIN + 5000), DEFINITION, KINDS)
    check(None, decision, DEFINITION)
    assert decision.row is not None
    assert (decision.row.status, requests(decision)) == ("PAUSED", [])
    assert decision.row.paused_by is not None
    assert decision.row.paused_by.actor == "ceremony-rehydrate"
    assert decision.row.paused_by.reason.endswith(": step talk reads the inputs")
    world.row, world.now = decision.row, BEGIN + 5000
    world.resume()
    world.fire("ask/talk")
    assert world.requests()[-1].attempt == 101


def test_an_ended_ceremony_is_never_paused_by_its_restoration(world: World) -> None:
    world.cancel()
    assert to_restore(world.live, 9, "a text").status == "CANCELLED"
