"""Actors of operations: their permissions, their record in the row, and their names in events."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tables.commands import Cancel, Pause, Trigger
from tables.fold.decide import Decision
from tables.instance import Pauser
from tables.limits import MAX_TEXT_CHARACTERS
from tests.tables.fold.test_operations import BODY, TALK
from tests.tables.world import ID, World, definition_of, refusal

ROLES = """
roles:
  - {id: OPERATOR, description: operates, allowed_actions: [one, late, cancel, pause, resume]}
  - {id: WATCHER, description: looks on, allowed_actions: [hold]}
"""
Operation = Callable[..., Decision]
OPERATIONS: dict[str, Callable[[World], Operation]] = {
    "cancel": lambda world: world.cancel,
    "pause": lambda world: world.pause,
    "resume": lambda world: world.resume,
    "retry": lambda world: lambda **more: world.retry("one", **more),
    "run": lambda world: lambda **more: world.run("one", **more),
}


def paused_by(world: World) -> Pauser | None:
    return world.live.paused_by


def failed() -> World:
    world = World(definition_of(BODY + ROLES))
    world.start(a=1)
    world.failed("one", retryable=False)
    return world


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_needs_an_actor_and_a_role_that_allows_it(name: str) -> None:
    """Permission is checked before the state of the ceremony."""
    # specification 13.1, 13.3
    world = failed()
    operation = OPERATIONS[name](world)
    assert refusal(operation(actor=" ")) == "actor_required"
    assert refusal(operation()) == "role_required"
    assert refusal(operation(role="WATCHER")) == "role_not_allowed"
    assert refusal(operation(role="SYSTEM")) == "role_not_allowed"
    assert refusal(operation(role="OPERATOR")) not in ("actor_required", "role_required", "role_not_allowed")


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_actor_may_act_when_no_role_lists_the_action(name: str) -> None:
    # specification 13.1
    world = World(definition_of(BODY + "roles:\n  - {id: WATCHER, description: d, allowed_actions: [hold]}\n"))
    world.start(a=1)
    operation = OPERATIONS[name](world)
    assert refusal(operation(actor="")) == "actor_required"
    assert refusal(operation()) not in ("role_required", "role_not_allowed")


def test_actor_role_and_reason_are_announced() -> None:
    # specification 13.11
    world = failed()
    who = {"actor": "ana", "role": "OPERATOR", "reason": "the vendor is back"}
    world.retry("one", **who)
    world.pause(**who)
    world.resume(**who)
    world.cancel(**who)
    for word in ("resumed", "step.ordered", "paused", "cancelled"):
        payload = world.events(f"ceremony.{word}")[-1].payload
        assert {key: payload[key] for key in who} == who
    ordered = world.events("ceremony.step.ordered")[0].payload
    assert (ordered["operation"], ordered["step_id"], ordered["attempt"]) == ("retry", "one", 2)


def told_of_transitions(world: World) -> list[tuple[str, dict[str, str] | None]]:
    return [(event.payload["trigger"], event.metadata) for event in world.events("ceremony.transition.applied")]


def test_the_actor_of_a_trigger_is_metadata_of_its_transition_only() -> None:
    """The payload's fields are fixed; a transition that follows by itself has no actor."""
    # specification 13.11
    body = BODY.replace('"step_status:late:COMPLETED"', '"step_status:late:PENDING"')
    world = World(definition_of(body + ROLES))
    world.start("one", a=1)
    reason = "the vendor is down"
    world.fold(Trigger(instance_id=ID, command_id="t-1", trigger="hold", actor="ben", role="WATCHER", reason=reason))
    who = {"actor": "ben", "role": "WATCHER", "reason": reason}
    assert told_of_transitions(world) == [("hold", who), ("finish", None)]
    payload = world.events("ceremony.transition.applied")[0].payload
    assert set(payload) == {"instance_id", "from_state", "to_state", "trigger"}


def test_a_long_reason_is_cut() -> None:
    world = World(definition_of(BODY))
    world.start(a=1)
    world.trigger("hold", reason="r" * (MAX_TEXT_CHARACTERS + 1))
    ((_, who),) = told_of_transitions(world)
    assert who is not None and len(who["reason"]) == MAX_TEXT_CHARACTERS


def test_an_agents_trigger_names_the_agent_and_the_role_system() -> None:
    # specification 13.13
    world = World(definition_of(TALK))
    world.start()
    world.outcome("talk", "submitted", deliberation_id="d")
    world.result("talk", "agent-dev-001", trigger="bad", command_id="task/agent")
    assert told_of_transitions(world) == [("bad", {"actor": "agent-dev-001", "role": "SYSTEM", "reason": ""})]


def test_a_decision_of_people_is_announced_by_itself_and_its_transition_has_no_actor() -> None:
    """The transition behind an approved guard is automatic; `ceremony.gate.decided` names the approver."""
    # specification 8.10, 13.11
    body = BODY.replace("guards:\n", "guards:\n  agreed: {type: human, role: PO, check: the owner agrees}\n")
    body = body.replace("trigger: hold,", "trigger: hold, guards: [agreed],")
    world = World(definition_of(body + "roles:\n  - {id: PO, description: d, allowed_actions: [hold]}\n"))
    world.start(a=1)
    world.decide("agreed", actor="ana", role="PO")
    assert world.events("ceremony.gate.decided")[0].payload["decided_by"] == ["ana"]
    assert told_of_transitions(world) == [("hold", None)]


def test_a_retry_is_announced_after_the_resumption_and_before_its_attempt_begins() -> None:
    # specification 13.11
    world = failed()
    world.retry("one", role="OPERATOR")
    subjects = [event.subject for event in world.events()]
    assert subjects[-2:] == ["ceremony.resumed", "ceremony.step.ordered"]
    assert world.requests()[-1].attempt == 2


def test_a_run_of_an_unselected_step_is_announced() -> None:
    world = World(definition_of(BODY))
    world.start("one", a=1)
    world.done("one")
    world.run("late", reason="now it is wanted")
    payload = world.events("ceremony.step.ordered")[0].payload
    assert (payload["operation"], payload["reason"], payload["current_state"]) == ("run", "now it is wanted", "HELD")


def test_a_paused_ceremony_keeps_the_actor_of_the_pause_until_the_resume() -> None:
    world = failed()
    world.retry("one", role="OPERATOR")
    world.pause(actor="ana", role="OPERATOR", reason="wait for the vendor")
    assert paused_by(world) == Pauser("ana", "OPERATOR", "wait for the vendor")
    world.resume(role="OPERATOR")
    assert paused_by(world) is None
    world.pause(role="OPERATOR")
    world.fold(Cancel(instance_id=ID, command_id="c", actor="ana", role="OPERATOR"))
    assert paused_by(world) is None


def test_a_pause_by_the_engine_needs_no_role() -> None:
    """A ceremony whose fold failed must stop, with any roles in its definition."""
    world = failed()
    world.retry("one", role="OPERATOR")
    world.fold(Pause(instance_id=ID, command_id="p", actor="ceremony-engine", by_engine=True))
    assert world.live.status == "PAUSED"


def test_a_repeated_retry_changes_nothing() -> None:
    # specification 13.12
    world = failed()
    world.retry("one", role="OPERATOR", command_id="r-1")
    assert world.retry("one", role="OPERATOR", command_id="r-1").note == "duplicate"
    assert len(world.events("ceremony.step.ordered")) == 1
