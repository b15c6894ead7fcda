"""Restoring a row from a read model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tables.commands import Origin, Restore
from tables.fold.decide import Decision, decide
from tables.fold.next_row import raised
from tables.instance import Instance, encode_instance
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


@pytest.fixture
def world() -> World:
    """A world with one of two results and an open gate."""
    world = World(DEFINITION)
    world.start()
    world.outcome("talk", "submitted", deliberation_id="d")
    world.result("talk", "agent-dev-001")
    world.opened("gate")
    return world


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
