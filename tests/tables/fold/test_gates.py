"""Decisions of people: gate steps, quorum, deadlines, visits, roles and human guards."""

from __future__ import annotations

import pytest

from tests.tables.world import KINDS, World, definition_of, refusal

HEAD = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: BACK, description: b}
  - {id: DONE, description: d, terminal: true}
roles:
  - {id: PO, description: owner, allowed_actions: [gate, finish]}
  - {id: DEV, description: developer, allowed_actions: [back]}
"""
GATE = HEAD + (
    """
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: d}
  - {from: RUN, to: BACK, trigger: back, description: d}
  - {from: BACK, to: RUN, trigger: again, description: d}
steps:
  - {id: gate, state: RUN, handler: human_gate_step, on_failure: back,
     config: {role: PO, message: is it good, quorum: 2, deadline_seconds: 600}}
"""
)
GUARD = HEAD.replace("[gate, finish]", "[finish]") + (
    """
transitions:
  - {from: RUN, to: DONE, trigger: finish, guards: [po_agrees], description: d}
  - {from: RUN, to: BACK, trigger: back, guards: [dev_agrees], description: d}
  - {from: BACK, to: RUN, trigger: again, description: d}
guards:
  po_agrees: {type: human, check: the owner agrees, role: PO}
  dev_agrees: {type: human, check: a developer agrees, role: DEV}
"""
)


@pytest.fixture
def world() -> World:
    """A world whose gate is open."""
    world = World(definition_of(GATE))
    world.start()
    world.opened("gate")
    return world


@pytest.fixture
def guarded() -> World:
    world = World(definition_of(GUARD))
    world.start()
    return world


def test_an_open_gate_waits_visibly_and_its_step_timeout_does_not_run(world: World) -> None:
    # specification 1.5, 8.2
    assert (world.live.status, world.step("gate").status) == ("WAITING_FOR_HUMAN", "WAITING_FOR_HUMAN")
    assert set(world.live.timers) == {"ceremony_max", "gate/gate"}
    assert world.step("gate").output == {"role": "PO", "message": "is it good", "waiting": True}
    assert world.events("ceremony.gate.opened")[0].payload == {
        "instance_id": "c1:s1",
        "step_id": "gate",
        "current_state": "RUN",
        "visit": 1,
        "role": "PO",
        "message": "is it good",
        "quorum": 2,
        "deadline": "2023-11-14T22:23:20.000Z",
    }
    assert world.executed() == [("gate", "WAITING_FOR_HUMAN")]


def test_a_quorum_of_distinct_actors_approves(world: World) -> None:
    # specification 8.4, 8.10
    world.decide("gate", actor="petra", role="PO")
    assert world.decide("gate", actor="petra", role="PO").note == "duplicate"
    assert world.live.status == "WAITING_FOR_HUMAN"
    world.decide("gate", actor="paul", role="PO", comment="fine")
    assert world.live.status == "COMPLETED"
    output = world.step("gate").output
    assert (output["approved"], output["decided_by"], output["comment"]) == (True, "petra, paul", "fine")
    assert world.subjects()[-4:] == [
        "ceremony.gate.decided",
        "ceremony.step.executed",
        "ceremony.transition.applied",
        "ceremony.completed",
    ]


def test_an_actor_with_a_name_too_long_to_be_kept_is_still_one_actor(world: World) -> None:
    world.decide("gate", actor="p" * 300, role="PO")
    assert world.decide("gate", actor="p" * 300, role="PO").note == "duplicate"
    assert world.live.status == "WAITING_FOR_HUMAN"


def test_a_quorum_counts_keys_of_actors_and_keeps_their_names(world: World) -> None:
    """The fold compares keys that the log holds; it folds no case by itself."""
    # specification 8.4, 13.15
    world.decide("gate", actor="Petra", actor_key="petra", role="PO")
    assert world.decide("gate", actor="PETRA", actor_key="petra", role="PO").note == "duplicate"
    assert world.decide("gate", actor="petra", actor_key="petra", role="PO").note == "duplicate"
    assert world.decide("gate", actor="Petra", role="PO").note == "duplicate"  # an older server sends no key
    assert [approval.actor for approval in world.step("gate").approvals] == ["Petra"]
    world.decide("gate", actor="Paul", actor_key="paul", role="PO")
    assert world.step("gate").output["decided_by"] == "Petra, Paul"


def test_an_approval_of_an_older_release_is_known_by_its_name(world: World) -> None:
    world.decide("gate", actor="petra", role="PO")
    assert world.step("gate").approvals[0].key == ""
    assert world.decide("gate", actor="Petra", actor_key="petra", role="PO").note == "duplicate"


def test_a_rejection_fails_the_step_with_its_output_kept_and_takes_on_failure(world: World) -> None:
    # specification 8.5, 8.6
    world.decide("gate", approved=False, role="PO", comment="no")
    failed = world.events("ceremony.step.executed")[1].payload
    assert (failed["status"], failed["error_code"]) == ("FAILED", "rejected")
    assert failed["output"]["approved"] is False
    assert world.path() == ["BACK", "RUN"]


def test_a_repeated_decision_changes_nothing(world: World) -> None:
    # specification 8.9
    world.decide("gate", actor="petra", role="PO", command_id="r1")
    assert world.decide("gate", actor="petra", role="PO", command_id="r1").note == "duplicate"
    world.decide("gate", actor="paul", role="PO")
    assert refusal(world.decide("gate", actor="paul", role="PO", visit=1)) == ""
    assert refusal(world.decide("gate", actor="late", role="PO", visit=1)) == "already_ended"


def test_the_deadline_of_a_gate_acts_as_a_rejection_but_keeps_no_output(world: World) -> None:
    # specification 8.6
    world.fire("gate/gate")
    failed = world.events("ceremony.step.executed")[1].payload
    assert (failed["error_code"], failed["output"]) == ("gate_deadline", {})
    assert world.path() == ["BACK", "RUN"]


def test_no_retry_policy_repeats_a_gate_whose_deadline_has_passed() -> None:
    # specification 8.6
    world = World(definition_of(GATE.replace("on_failure: back,", "on_failure: back, retry: {max_attempts: 3},")))
    world.start()
    world.opened("gate")
    world.fire("gate/gate")
    assert world.events("ceremony.step.retrying") == []
    assert world.path() == ["BACK", "RUN"]


def test_approving_one_visit_never_approves_the_next(world: World) -> None:
    # specification 8.3, 8.8
    world.decide("gate", actor="petra", role="PO")
    world.fire("gate/gate")
    world.opened("gate")
    assert world.step("gate").approvals == ()
    assert refusal(world.decide("gate", actor="paul", role="PO", visit=1)) == "stale_visit"
    world.decide("gate", actor="paul", role="PO", visit=2)
    assert world.live.status == "WAITING_FOR_HUMAN"


@pytest.mark.parametrize(("role", "code"), [("", "role_required"), ("DEV", "role_not_allowed")])
def test_a_decision_needs_a_role_that_lists_the_gate(world: World, role: str, code: str) -> None:
    # specification 13.1, 13.2
    decision = world.decide("gate", role=role)
    assert refusal(decision) == code
    assert decision.row is world.live


@pytest.mark.parametrize(("role", "code"), [("", ""), ("PO", ""), ("DEV", "role_not_allowed")])
def test_without_roles_in_the_definition_a_named_role_must_be_the_gates_own(role: str, code: str) -> None:
    # specification 13.2
    without = HEAD.partition("roles:")[0] + GATE.removeprefix(HEAD)
    world = World(definition_of(without))
    world.start()
    world.opened("gate")
    assert refusal(world.decide("gate", role=role)) == code


def test_a_decision_on_a_closed_or_unknown_gate_is_refused() -> None:
    # specification 14.2
    world = World(definition_of(GATE))
    world.start()
    assert refusal(world.decide("gate", role="PO")) == "gate_not_open"
    assert refusal(world.decide("nothing", role="PO")) == "gate_unknown"
    assert refusal(world.decide("gate", role="PO", actor=" ")) == "actor_required"


def test_an_approved_gate_satisfies_human_guards_of_its_role_on_leaving_transitions() -> None:
    # specification 8.7
    world = World(
        definition_of(
            GUARD.replace("[finish]", "[gate, finish]", 1)
            + "steps:\n  - {id: gate, state: RUN, handler: human_gate_step, config: {role: PO, message: good}}\n"
        )
    )
    world.start()
    world.opened("gate")
    world.decide("gate", role="PO")
    assert (world.live.status, world.path()) == ("COMPLETED", ["DONE"])


def test_a_human_guard_is_satisfied_by_an_approval_of_its_role(guarded: World) -> None:
    # specification 3.8, 8.7
    assert guarded.live.status == "WAITING_FOR_HUMAN"
    assert refusal(guarded.decide("po_agrees", role="DEV")) == "role_not_allowed"
    assert refusal(guarded.decide("po_agrees")) == "role_required"
    guarded.decide("po_agrees", role="PO")
    assert guarded.path() == ["DONE"]


def test_approvals_of_a_guard_count_for_one_visit(guarded: World) -> None:
    # specification 8.8
    guarded.decide("dev_agrees", role="DEV")
    assert guarded.path() == ["BACK", "RUN"]
    assert guarded.live.guard_approvals == {}
    assert refusal(guarded.decide("dev_agrees", role="DEV", visit=1)) == "stale_visit"


def test_a_rejected_guard_loses_its_approval() -> None:
    # specification 8.7
    world = World(
        definition_of(
            GUARD.replace("[po_agrees]", "[po_agrees, ready]")
            + "  ready: {check: 'step_status:one:COMPLETED'}\n"
            + "inputs: {required: [a]}\n"
            + "steps:\n  - {id: one, state: RUN, handler: aggregation_step,"
            + " config: {sources: [a], aggregation_type: list}}\n"
        )
    )
    world.start(a=1)
    world.decide("po_agrees", role="PO")
    world.decide("po_agrees", approved=False, role="PO")
    world.done("one")
    assert world.live.status == "WAITING_FOR_HUMAN"
    world.decide("po_agrees", role="PO")
    assert world.live.status == "COMPLETED"


def test_a_guard_of_another_state_is_not_open(world: World, guarded: World) -> None:
    guarded.decide("po_agrees", role="PO")
    assert refusal(guarded.decide("dev_agrees", role="DEV")) == "already_ended"
    assert refusal(world.decide("po_agrees", role="PO")) == "gate_unknown"


def test_a_decision_while_paused_is_recorded_and_moves_the_ceremony_at_the_resume(world: World) -> None:
    # specification 13.7, 13.8
    world.decide("gate", actor="petra", role="PO")
    world.pause()
    world.decide("gate", actor="paul", role="PO")
    assert (world.live.status, world.step("gate").status) == ("PAUSED", "COMPLETED")
    world.resume()
    assert world.live.status == "COMPLETED"


def test_a_quorum_cannot_outgrow_the_row_by_its_comments() -> None:
    world = World(definition_of(GATE.replace("quorum: 2", "quorum: 99")))
    world.start()
    world.opened("gate")
    codes = [refusal(world.decide("gate", actor=f"a{i}", role="PO", comment="ü" * 5000)) for i in range(40)]
    assert codes[:32] == [""] * 32
    assert codes[-1] == "row_full"
    assert refusal(world.decide("gate", actor="short", role="PO")) == ""


SHARED = GUARD.replace("[finish]", "[gate, finish]", 1).replace("[back]", "[gate, back]", 1)


def test_an_approval_in_another_role_than_the_gates_satisfies_no_guard_and_is_recorded_as_it_was() -> None:
    """Two roles may decide the gate; the guard is its own role's."""
    # specification 8.7, 13.15
    gate = "steps:\n  - {id: gate, state: RUN, handler: human_gate_step, config: {role: PO, message: good}}\n"
    world = World(definition_of(SHARED + gate))
    assert {"gate"} <= set(world.definition.roles["DEV"].allowed_actions)
    world.start()
    world.opened("gate")
    world.decide("gate", role="DEV", actor="dora")
    assert world.step("gate").status == "COMPLETED"
    assert [(one.actor, one.role) for one in world.step("gate").approvals] == [("dora", "DEV")]
    assert world.events("ceremony.gate.decided")[-1].payload["role"] == "DEV"
    assert (world.live.guard_approvals, world.path()) == ({}, [])
    world.decide("po_agrees", role="PO", actor="petra")
    assert world.path() == ["DONE"]


def test_one_approval_of_the_quorum_in_the_guards_role_satisfies_the_guard() -> None:
    # specification 8.7
    gate = "steps:\n  - {id: gate, state: RUN, handler: human_gate_step, config: {role: PO, message: m, quorum: 2}}\n"
    world = World(definition_of(SHARED + gate))
    world.start()
    world.opened("gate")
    world.pause()
    world.decide("gate", role="PO", actor="petra")
    world.decide("gate", role="DEV", actor="dora")
    (approval,) = world.live.guard_approvals["po_agrees"]
    assert (approval.actor, approval.role) == ("petra", "PO")


def test_an_approved_gate_satisfies_no_guard_of_another_role() -> None:
    # specification 8.7
    world = World(
        definition_of(
            GUARD.replace("[finish]", "[gate, finish]", 1)
            + "steps:\n  - {id: gate, state: RUN, handler: human_gate_step, config: {role: PO, message: good}}\n"
        )
    )
    world.start()
    world.opened("gate")
    world.pause()
    world.decide("gate", role="PO")
    assert set(world.live.guard_approvals) == {"po_agrees"}


def test_an_open_gate_shows_its_rendered_message_everywhere() -> None:
    # specification 8.11
    asked = GATE.replace("steps:", "inputs: {required: [title], optional: [note]}\nsteps:", 1)
    world = World(definition_of(asked.replace("is it good", "'${inputs.title}${inputs.note}?'")), KINDS)
    world.start(title="Login")
    opened = world.events("ceremony.gate.opened")[0].payload
    assert (opened["message"], world.step("gate").output["message"]) == ("Login?", "Login?")
