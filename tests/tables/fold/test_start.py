"""Start: the first one wins, the same one again changes nothing, any other is refused."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tables.commands import Origin, TimerFired
from tables.effects import FOLD
from tables.fold.decide import decide
from tables.fold.retention import UNTIL_STUB_MS, UNTIL_TOMBSTONE_MS
from tables.fold.start import start_digest
from tests.tables.world import BEGIN, ID, KINDS, World, definition_of, refusal

TWO = definition_of(
    """
inputs: {required: [a], optional: [b]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
  - {id: two, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
"""
)


@pytest.fixture
def world() -> World:
    return World(TWO)


def test_the_same_start_again_is_accepted_and_changes_nothing(world: World) -> None:
    # specification 10.5
    first = world.start(a=[1], b={"x": 1, "y": 2})
    again = world.start(b={"y": 2, "x": 1}, a=[1])
    assert again.row is first.row
    assert (again.effects, again.note) == ((), "duplicate")


def test_naming_all_step_ids_equals_naming_none(world: World) -> None:
    # specification 10.4
    world.start(a=1)
    assert world.start("two", "one", "two", a=1).note == "duplicate"


def test_a_repeated_step_id_and_their_order_do_not_make_another_start(world: World) -> None:
    world.start("one", "one", a=1)
    assert world.start("one", a=1).note == "duplicate"
    three = ("b", "a", "b")
    command = world.start_command(*three, a=1)
    assert start_digest(command, ("a", "b", "c")) == start_digest(
        replace(command, step_ids=("a", "b")), ("a", "b", "c")
    )


def test_correlation_id_and_requested_by_do_not_make_another_start(world: World) -> None:
    # specification 10.4
    world.start(a=1)
    other = replace(world.start_command(a=1), correlation_id="other", requested_by="someone else")
    assert world.fold(other).note == "duplicate"


@pytest.mark.parametrize("other", [{"a": 2}, {"a": 1, "b": 1}])
def test_a_start_with_other_content_is_refused_with_an_event(world: World, other: dict[str, Any]) -> None:
    # specification 10.5, 10.6, 16.3
    row = world.start(a=1).row
    decision = world.start(**other)
    assert decision.row is row
    assert refusal(decision) == "already_exists"
    event = world.events("ceremony.start.refused")[-1]
    assert event.payload.keys() == {"instance_id", "code", "message"}
    assert event.payload["code"] == "already_exists"
    assert event.id == "0/1/1"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inputs": {"a": 2}}, "inputs.a differs"),
        ({"inputs": {"a": "geheim", "b": 1, "c": 2}}, "inputs.a, inputs.b, inputs.c differ"),
        ({"inputs": {"a": 1.0}}, "inputs.a differs"),
        ({"inputs": {"a": 1}, "step_ids": ("two",)}, "step_ids differs"),
        ({"definition_name": "other", "inputs": {"a": 1}}, "definition_name differs"),
        ({"inputs": {"a": 1} | {f"x{n:02}": n for n in range(12)}}, "inputs.x09 and 2 more differ"),
        ({"inputs": {"a": 1, "n" * 5000: 1}}, "inputs." + "n" * 56 + "… differs"),
    ],
)
def test_a_start_with_other_content_names_the_fields_that_differ_and_no_value(
    world: World, change: dict[str, Any], named: str
) -> None:
    # specification 10.5
    world.start(a=1)
    world.fold(replace(world.start_command(a=1), **change))
    message = world.events("ceremony.start.refused")[-1].payload["message"]
    assert message.startswith("c1:s1 is there already: RUNNING; it was started with other content: ")
    assert message.endswith(named) and "geheim" not in message


def test_a_start_of_an_id_whose_ceremony_ended_says_so(world: World) -> None:
    # specification 10.5
    world.start(a=1)
    world.cancel()
    world.start(a=2)
    assert "c1:s1 is there already: CANCELLED" in world.events("ceremony.start.refused")[-1].payload["message"]


def test_a_stub_names_no_inputs(world: World) -> None:
    world.start(a=1)
    world.cancel()
    world.fire("expire")
    world.start(a=2)
    message = world.events("ceremony.start.refused")[-1].payload["message"]
    assert message == "c1:s1 is there already: CANCELLED; it was started with other content"


def test_other_step_ids_are_other_content(world: World) -> None:
    # specification 10.4
    world.start("one", a=1)
    assert refusal(world.start("two", a=1)) == "already_exists"
    assert refusal(world.start(a=1)) == "already_exists"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"instance_id": "c1:s2"}, "invalid_id"),
        ({"ceremony_id": "-c", "instance_id": "-c:s1"}, "invalid_id"),
        ({"story_id": "s/1", "instance_id": "c1:s/1"}, "invalid_id"),
        ({"story_id": "s1\n", "instance_id": "c1:s1\n"}, "invalid_id"),
        ({"requested_by": "  "}, "actor_required"),
        ({"definition_name": "another"}, "definition_unknown"),
        ({"step_ids": ("one", "three")}, "step_unknown"),
        ({"inputs": {}}, "input_missing"),
        ({"inputs": {"a": 1, "story_id": "s2"}}, "inputs_invalid"),
        ({"inputs_size": 256 * 1024 + 1}, "inputs_too_large"),
        ({"inputs": {"a": "x" * 256 * 1024}}, "inputs_too_large"),
    ],
)
def test_an_invalid_start_is_refused_with_a_code(world: World, change: dict[str, Any], code: str) -> None:
    # specification 10.6
    decision = world.fold(replace(world.start_command(a=1), **change))
    assert (decision.row, refusal(decision), decision.note) == (None, code, code)
    assert world.subjects() == ["ceremony.start.refused"]


def test_inputs_may_nest_64_containers_and_no_more(world: World) -> None:
    # specification 10.11
    value: Any = []
    for _ in range(63):
        value = [value]
    assert refusal(world.start(a=[value])) == "inputs_too_deep"
    assert refusal(world.start(a=value)) == ""


def test_a_start_whose_definition_this_partition_does_not_have_is_refused(world: World) -> None:
    decision = decide(None, world.start_command(a=1), Origin(3, 9, BEGIN), None, KINDS)
    assert refusal(decision) == "definition_unknown"
    assert [effect.id for effect in decision.effects] == ["3/9/0", "3/9/1"]


def test_an_input_that_no_definition_declares_is_kept(world: World) -> None:
    """Callers of the older engine send such inputs (docs/decisions/0002)."""
    # specification 10.10
    assert refusal(world.start(a=1, zzz={"b": 2})) == ""
    assert world.live.inputs["zzz"] == {"b": 2}


def test_the_ids_are_always_among_the_inputs(world: World) -> None:
    # specification 10.9
    world.start(a=1)
    assert world.live.inputs == {"a": 1, "ceremony_id": "c1", "story_id": "s1"}


def test_a_blank_correlation_id_becomes_the_instance_id(world: World) -> None:
    # specification 1.7
    world.fold(replace(world.start_command(a=1), correlation_id="  "))
    assert world.live.correlation_id == ID


def test_effect_ids_are_derived_from_instance_version_and_ordinal(world: World) -> None:
    # specification 16.3, 16.4
    world.start(a=1)
    assert [effect.id for effect in world.effects] == [f"c1:s1/1/0@{FOLD}", f"c1:s1/1/1@{FOLD}"]


def test_an_unselected_step_counts_as_satisfied_and_stays_pending(world: World) -> None:
    # specification 10.13
    world.start("two", a=1)
    assert [request.step_id for request in world.requests()] == ["two"]
    world.done("two")
    assert (world.live.status, world.step("one").status) == ("COMPLETED", "PENDING")


def test_the_clock_of_a_fold_never_goes_back(world: World) -> None:
    world.start(a=1)
    world.now -= 50_000
    world.done("one")
    assert world.live.updated_at == BEGIN


def test_a_definition_without_steps_runs_to_its_end_at_once() -> None:
    # specification 12.1, 12.7
    bare = definition_of(
        """
states:
  - {id: A, description: a, initial: true}
  - {id: B, description: b}
  - {id: C, description: c, terminal: true}
transitions:
  - {from: A, to: B, trigger: t, description: d}
  - {from: B, to: C, trigger: t, description: d}
"""
    )
    world = World(bare)
    world.start()
    assert (world.live.status, world.path(), world.live.version) == ("COMPLETED", ["B", "C"], 1)


def test_a_definition_whose_one_state_is_beginning_and_end_is_completed_at_once() -> None:
    """Exactly one state is initial and at least one terminal; they may be the same."""
    world = World(definition_of("states: [{id: A, description: a, initial: true, terminal: true}]\ntransitions: []\n"))
    world.start()
    assert (world.live.status, world.live.state) == ("COMPLETED", "A")
    assert world.subjects() == ["ceremony.started", "ceremony.completed"]


def test_retention_leaves_a_stub_that_answers_a_repeated_start_and_later_a_tombstone(world: World) -> None:
    # specification 21.1
    start = world.start_command("one", a=1)
    world.fold(start)
    world.done("one")
    assert world.live.timers["expire"].due == BEGIN + UNTIL_STUB_MS
    assert world.fold(TimerFired(instance_id=ID, timer_id="expire")).note == "early_timer"
    world.fire("expire")
    assert world.live.expired
    assert (world.live.inputs, world.live.steps, world.live.status) == ({}, {}, "COMPLETED")
    assert world.fold(start).note == "duplicate"
    assert refusal(world.start("one", a=2)) == "already_exists"
    assert refusal(world.cancel()) == "already_ended"
    assert world.live.timers["expire"].due == BEGIN + UNTIL_STUB_MS + UNTIL_TOMBSTONE_MS
    assert world.fire("expire").row is None


def test_a_command_for_an_unknown_instance_is_refused_only_to_a_waiting_client(world: World) -> None:
    assert refusal(world.cancel()) == "unknown_instance"
    decision = world.fold(TimerFired(instance_id=ID, timer_id="timeout/one", attempt=1))
    assert (decision.effects, decision.note) == ((), "unknown_instance")


def test_a_repeated_start_is_recognised_without_its_definition(world: World) -> None:
    row = world.start("two", a=1).row
    origin = Origin(0, 7, BEGIN)
    assert decide(row, world.start_command("two", a=1), origin, None, KINDS).note == "duplicate"
    assert decide(row, world.start_command("one", a=1), origin, None, KINDS).note == "already_exists"


def test_a_start_is_the_same_with_and_without_the_ids_among_its_inputs(world: World) -> None:
    world.start(a=1)
    assert world.start(a=1, story_id="s1", ceremony_id="c1").note == "duplicate"
