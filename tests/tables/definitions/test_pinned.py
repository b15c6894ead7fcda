"""Pinned definitions: they keep their meaning under rules that are younger than they are."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from ports.errors import CeremonyError
from tables.definition import Definition
from tables.definitions.loader import content_hash, load, load_pinned
from tables.definitions.problems import UNREADABLE
from tables.diagnosis import diagnose
from tables.errors import DefinitionInvalid
from tables.kinds import Kinds
from tests.tables.world import KINDS, World, refusal

TEXT = """\
version: "1.0"
name: old
description: An old one.
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: GOOD, description: g, terminal: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: GOOD, trigger: win, description: w, guards: [odd]}
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: one, state: RUN, handler: publish_step, config: {subject: ceremony.x, event_type: e}}
  - {id: gate, state: RUN, handler: human_gate_step, config: {role: R, message: m}}
guards:
  odd: {check: "cel:inputs.a == [1]"}
"""
SHARED = TEXT.replace("guards:\n", "guards:\n  gate: {type: human, check: fine}\n")


def pinned(text: str, kinds: Kinds = KINDS) -> Definition:
    return load_pinned(text, content_hash(text), kinds)


def refusing(_: str) -> None:
    raise CeremonyError("bad_expression", "is too dear for this release")


def test_a_file_that_breaks_a_later_rule_is_an_error_and_stays_loadable_where_it_is_pinned() -> None:
    # specification 24.4
    with pytest.raises(DefinitionInvalid, match="gate_and_guard"):
        load(SHARED, "old.yaml", KINDS)
    found = pinned(SHARED)
    assert [problem.rule for problem in found.objections] == ["gate_and_guard"]
    assert list(found.steps) == ["one", "gate"]


APART = (
    SHARED.replace("guards: [odd]", "guards: [gate]").replace("check: fine", "check: fine, role: DEV")
    + "roles:\n  - {id: R, description: r, allowed_actions: [gate]}\n  - {id: DEV, description: d}\n"
)


def of_one_name(text: str) -> World:
    """Begin a ceremony whose gate is open, beside a human guard of its name."""
    world = World(pinned(text), KINDS)
    world.start(a=[])
    world.done("one")
    assert world.step("gate").phase == "gate"
    return world


def test_a_pinned_guard_with_the_name_of_a_gate_is_decided_where_the_decision_calls_it_a_guard() -> None:
    # specification 8.3, 24.4
    world = of_one_name(APART)
    assert refusal(world.decide("gate", role="DEV")) == "role_not_allowed"
    assert refusal(world.decide("gate", role="R", names_guard=True)) == "role_not_allowed"
    world.decide("gate", role="DEV", names_guard=True)
    assert world.path() == ["GOOD"]
    assert world.events("ceremony.gate.decided")[-1].payload["role"] == "DEV"


def test_a_pinned_gate_with_the_name_of_a_guard_is_decided_in_all_other_decisions() -> None:
    """Commands of older releases do not say which is meant; and a repeated approval never turns to the guard."""
    # specification 8.3, 8.9
    world = of_one_name(APART.replace(", role: DEV", ""))
    world.pause()
    world.decide("gate", role="R")
    assert (world.step("gate").status, world.live.guard_approvals) == ("COMPLETED", {})
    assert world.decide("gate", role="R").note == "duplicate"
    world.decide("gate", role="R", names_guard=True)
    assert set(world.live.guard_approvals) == {"gate"}
    world.resume()
    assert world.path() == ["GOOD"]


def test_a_decision_that_calls_a_gate_without_a_guard_of_its_name_a_guard_is_on_the_gate() -> None:
    # specification 8.3
    world = of_one_name(TEXT)
    world.decide("gate", role="R", names_guard=True)
    assert world.step("gate").status == "COMPLETED"


def test_a_valid_file_means_the_same_where_it_is_pinned() -> None:
    # specification 24.4
    assert pinned(TEXT).objections == ()
    assert repr(pinned(TEXT).steps) == repr(load(TEXT, "old.yaml", KINDS).steps)


def test_the_answers_of_a_ceremony_with_a_refused_guard_are_folded_and_the_guard_does_not_hold() -> None:
    """Only that guard is lost: the ceremony takes the next way out, and the log learns the reason."""
    # specification 24.4
    text = TEXT + "# refused\n"
    with mock.patch("tables.guards.cel.compiled", refusing):
        with pytest.raises(DefinitionInvalid, match="bad_expression"):
            load(text, "old.yaml", KINDS)
        definition = pinned(text)
    world = World(definition, KINDS)
    world.start(a=[1])
    world.done("one")
    world.decide("gate", role="R")
    assert world.path() == ["DONE"]
    assert [list(decision.unjudged) for decision in world.decisions if decision.unjudged] == [["odd"]] * 3


@pytest.mark.parametrize("text", ["states: []", "", TEXT.replace("event_type: e", "event: e")])
def test_a_text_that_leaves_nothing_to_run_is_refused_where_it_is_pinned_too(text: str) -> None:
    with pytest.raises(DefinitionInvalid):
        pinned(text)


def test_rules_that_a_later_release_may_add_are_forgiven() -> None:
    """A new code is forgiven by itself; these are checks that a release may make stricter."""
    # specification 24.4
    stricter = {"bad_check", "bad_expression", "bad_json_schema", "schema_too_large", "subject_not_allowed"}
    assert not UNREADABLE & (stricter | {"gate_and_guard", "endless_cycle", "unknown_action", "role_not_allowed"})


def test_a_rule_of_a_kind_is_forgiven_too() -> None:
    # specification 24.4
    text = TEXT + "# a rule of a kind\n"
    complaint = [("subject", "event_type_not_allowed", "no longer")]
    with mock.patch.object(type(KINDS["publish_step"]), "check", return_value=complaint):
        found = pinned(text)
    assert [problem.rule for problem in found.objections] == ["event_type_not_allowed"]


def test_a_scalar_that_is_to_be_quoted_now_keeps_its_value_where_it_is_pinned() -> None:
    """The oldest loader read 0100 as YAML 1.1 does, and running ceremonies were promised that."""
    # specification 24.4
    text = TEXT + "timeouts: {step_default: 0100}\n"
    with pytest.raises(DefinitionInvalid, match="quote_it"):
        load(text, "old.yaml", KINDS)
    assert pinned(text).steps["one"].timeout_seconds == 64


def test_a_pinned_guard_whose_macro_walks_over_a_map_does_not_hold_and_is_named() -> None:
    # specification 3.9, 24.4
    text = TEXT.replace("inputs.a == [1]", "inputs.exists(k, k == 'a')")
    with pytest.raises(DefinitionInvalid, match="cel_over_map"):
        load(text, "old.yaml", KINDS)
    definition = pinned(text)
    assert [problem.rule for problem in definition.objections] == ["cel_over_map"]
    world = World(definition, KINDS)
    world.start(a=[1])
    (todo,) = diagnose(world.live, definition, world.now).todo
    assert todo.startswith("guard `odd` never holds: this release refuses its check (cel_over_map)")
    world.done("one")
    world.decide("gate", role="R")
    assert world.path() == ["DONE"]


def test_a_guard_that_walks_over_a_map_of_this_ceremony_is_named() -> None:
    """The file is valid: only the inputs tell that `a` is a map."""
    # specification 3.9
    world = World(load(TEXT.replace("inputs.a == [1]", "inputs.a.exists(k, k == 'a')"), "old.yaml", KINDS), KINDS)
    world.start(a={"a": 1})
    found = diagnose(world.live, world.definition, world.now)
    assert found.todo[0].startswith("guard `odd` does not hold, whatever its values are: cel_over_map: ")
    assert found.ways_out[0].guards[0].reason.startswith("cel_over_map: ")
    world.done("one")
    (logged,) = {text for decision in world.decisions for text in decision.unjudged.values()}
    assert logged.startswith("cel_over_map: ")


@pytest.mark.parametrize(
    ("template", "rule", "payload"),
    [
        ("{v: '${inputs.a'}", "template_unclosed", {"v": "${inputs.a"}),
        ("{v: '$${inputs.b', w: x}", "", {"v": "${inputs.b", "w": "x"}),
        ("{v: '${env.HOME}'}", "", {"v": "${env.HOME}"}),
        ("{v: NO}", "quote_it", {"v": False}),
    ],
)
def test_a_pinned_template_renders_as_it_is_written(template: str, rule: str, payload: dict[str, Any]) -> None:
    # specification 4.1, 24.4
    definition = pinned(TEXT.replace("event_type: e", f"event_type: e, payload_template: {template}"))
    assert [problem.rule for problem in definition.objections] == ([rule] if rule else [])
    world = World(definition, KINDS)
    world.start(a=[])
    assert world.requests()[0].body["payload"] == payload


def test_a_pinned_step_that_reads_a_later_one_fails_as_it_did() -> None:
    # specification 24.4
    definition = pinned(TEXT.replace("event_type: e", "event_type: e, payload_template: {v: '${steps.gate.role}'}"))
    assert [problem.rule for problem in definition.objections] == ["source_never_before"]
    world = World(definition, KINDS)
    world.start(a=[])
    assert world.step("one").error_code == "template_unresolved"
