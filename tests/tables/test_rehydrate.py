"""Rehydration: each stored form becomes the row it was made of, and each broken invariant is listed with its code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tables.commands import Restore
from tables.definition import Definition
from tables.definitions.loader import content_hash
from tables.fold.restore import to_restore
from tables.instance import (
    TERMINAL,
    AskedTrigger,
    CeremonyStatus,
    Instance,
    Phase,
    StepState,
    StepStatus,
    Timer,
    encode_instance,
    recounted,
)
from tables.invariants import Breach
from tables.read_model import document_of, neo4j_properties, nothing_redacted, valkey_json
from tables.rehydrate import MOST_BREACHES, Rehydrated, from_changelog, from_neo4j, from_valkey, pinned_in
from tests.tables.properties.play import begun
from tests.tables.properties.players import Honest, Hostile
from tests.tables.world import BEGIN, ID, KINDS, World, definition_of

DEFINITION = definition_of(
    """
inputs: {optional: [a]}
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
  - {id: talk, state: RUN, handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 2}}
  - {id: gate, state: RUN, after: [], handler: human_gate_step, config: {role: PO, message: m, deadline_seconds: 60}}
"""
)
ROOT = Path(__file__).parents[2]
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
PINNED = pinned_in({DEFINITION.hash: DEFINITION.text}.get, KINDS)


@pytest.fixture
def world() -> World:
    """One of two agents has answered, and a gate is open."""
    world = World(DEFINITION)
    world.start(a="x")
    world.outcome("talk", "submitted", deliberation_id="d")
    world.result("talk", "agent-dev-001")
    world.opened("gate")
    return world


def without_answers(row: Instance) -> Instance:
    """The row as a document can give it back: answers to the live attempt are lost, for they are asked for again."""
    steps = {step_id: replace(step, answers={}) for step_id, step in row.steps.items()}
    return recounted(replace(row, steps=steps))


def all_forms(row: Instance, pinned: Any = PINNED) -> dict[str, Rehydrated]:
    document = document_of(row, nothing_redacted)
    return {
        "valkey": from_valkey(valkey_json(document), pinned, row.instance_id),
        "neo4j": from_neo4j(neo4j_properties(document), pinned, row.instance_id),
        "changelog": from_changelog(encode_instance(row), pinned, row.instance_id),
    }


def codes(found: Rehydrated) -> list[str]:
    assert (found.instance is None) == bool(found.breaches)
    return [breach.code for breach in found.breaches]


# -- the happy path, per source


def test_a_document_of_valkey_becomes_its_row(world: World) -> None:
    # specification 28.1
    found = all_forms(world.live)["valkey"]
    assert found == Rehydrated(ID, world.live.version, without_answers(world.live))


def test_a_node_of_neo4j_becomes_its_row(world: World) -> None:
    # specification 28.1
    found = all_forms(world.live)["neo4j"]
    assert found == Rehydrated(ID, world.live.version, without_answers(world.live))


def test_a_row_of_a_changelog_becomes_itself(world: World) -> None:
    # specification 28.1
    found = all_forms(world.live)["changelog"]
    assert found == Rehydrated(ID, world.live.version, world.live)


def test_a_stub_of_a_changelog_needs_no_definition() -> None:
    world = World(DEFINITION)
    world.start()
    world.cancel()
    world.fire("expire")
    assert world.live.expired
    assert from_changelog(encode_instance(world.live), pinned_in(lambda _: None, KINDS), ID).instance == world.live


@QUICK
@given(st.randoms(use_true_random=False))
def test_at_any_moment_a_row_comes_back_whole_but_for_the_answers_to_its_live_attempts(rng: Random) -> None:
    # specification 28.1
    world = begun(rng)
    pinned = pinned_in({world.definition.hash: world.definition.text}.get, KINDS)
    hostile = Hostile(world, rng)
    for _ in range(25):
        hostile.move()
        if world.row is None or world.row.expired:
            return
        found = all_forms(world.row, pinned)
        assert found["changelog"].instance == world.row, found["changelog"].breaches
        for source in ("valkey", "neo4j"):
            assert found[source].instance == without_answers(world.row), found[source].breaches


@QUICK
@given(st.randoms(use_true_random=False))
def test_a_ceremony_restored_at_any_moment_goes_on_to_an_end_however_long_after(rng: Random) -> None:
    # specification 28.5
    before = begun(rng)
    hostile = Hostile(before, rng)
    for _ in range(rng.randint(0, 20)):
        if before.row is None or before.row.expired:
            return
        hostile.move()
    if before.row is None or before.row.expired:
        return
    pinned = pinned_in({before.definition.hash: before.definition.text}.get, KINDS)
    row = all_forms(before.row, pinned)[rng.choice(("valkey", "neo4j"))].instance
    assert row is not None
    after = World(before.definition, before.kinds)
    after.now = before.now + rng.choice((0, 60_000, 10**12))
    body = msgspec.json.decode(encode_instance(to_restore(row, row.version + rng.choice((0, 3)))))
    after.fold(Restore(instance_id=ID, instance=body, seen_version=row.version))
    assert after.live.version > row.version + 1000
    assert (after.live.status in TERMINAL) == (row.status in TERMINAL)
    if after.live.status == "PAUSED":
        after.resume()
    Honest(after, rng, quality=0.95).play()
    assert after.live.status in TERMINAL
    assert not {effect.id for effect in after.effects} & {effect.id for effect in before.effects}


# -- broken parts of a document


def document(row: Instance) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(valkey_json(document_of(row, nothing_redacted)))
    return found


def test_bytes_that_are_no_document_are_named() -> None:
    # specification 28.2
    for value in (b"", b"\xff", b"[]", b'{"version": ', b"{" * 5000):
        assert codes(from_valkey(value, PINNED, ID)) == ["document_undecodable"]
        assert codes(from_changelog(value, PINNED, ID)) == ["row_undecodable"]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda d: d.pop("status"), "property_missing"),
        (lambda d: d.pop("engine"), "property_missing"),
        (lambda d: d["engine"].pop("ceremony_id"), "property_missing"),
        (lambda d: d.update(version="7"), "property_invalid"),
        (lambda d: d.update(status="DANCING"), "property_invalid"),
        (lambda d: d.update(engine=[]), "property_invalid"),
        (lambda d: d["engine"].update(timers={"x": 1}), "property_invalid"),
        (lambda d: d["step_outputs"].update(gate=nested(200)), "too_deep"),
        (lambda d: d["engine"].update(format=99), "format_too_new"),
        (lambda d: d["engine"].update(row_format=99), "format_too_new"),
        (lambda d: d["step_status"].update(other="PENDING"), "properties_differ"),
        (lambda d: d["step_outputs"].update(other=1), "properties_differ"),
        (lambda d: d.update(inputs={"a": "y"}), "properties_differ"),
        (lambda d: d.update(definition_hash="0"), "properties_differ"),
        (lambda d: d.update(updated_at="2001-01-01T00:00:00.000Z"), "properties_differ"),
        (lambda d: d.update(instance_id="c2:s1"), "ids_differ"),
        (lambda d: d.update(instance_id="c2:s1"), "key_differs"),
    ],
)
def test_each_broken_part_of_a_document_has_its_code(world: World, spoil: Callable[[Any], Any], code: str) -> None:
    # specification 28.2
    spoiled = document(world.live)
    spoil(spoiled)
    assert code in codes(from_valkey(json.dumps(spoiled).encode(), PINNED, ID))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_broken_part_hides_no_other(world: World) -> None:
    # specification 28.2
    spoiled = document(world.live)
    del spoiled["status"], spoiled["engine"]["visits"], spoiled["engine"]["story_id"]
    spoiled["version"] = -1.5
    spoiled["engine"]["timers"] = 7
    found = from_valkey(json.dumps(spoiled).encode(), PINNED, ID)
    assert [str(breach).partition(":")[0] for breach in found.breaches] == [
        "status is missing",
        "version",
        "engine.story_id is missing",
        "engine.timers",
    ]
    assert (found.instance_id, found.version) == (ID, 0)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda p: p.pop("engine"), "property_missing"),
        (lambda p: p.update(engine=7), "property_invalid"),
        (lambda p: p.update(step_outputs_json="{"), "property_invalid"),
        (lambda p: p.update(version=1.5), "property_invalid"),
        (lambda p: p.update(correlation_id=object()), "property_invalid"),
        (lambda p: p.update(current_state="NOWHERE"), "state_unknown"),
    ],
)
def test_each_broken_part_of_a_node_has_its_code(world: World, spoil: Callable[[Any], Any], code: str) -> None:
    # specification 28.2
    properties: dict[str, Any] = neo4j_properties(document_of(world.live, nothing_redacted))
    spoil(properties)
    assert code in codes(from_neo4j(properties, PINNED, ID))


def test_a_broken_part_of_a_row_has_its_code(world: World) -> None:
    # specification 28.2
    row = json.loads(encode_instance(world.live))
    for change, code in (
        ({"status": "DANCING", "steps": 7}, "property_invalid"),
        ({"format": 99}, "format_too_new"),
        ({"instance_id": "c2:s1"}, "key_differs"),
    ):
        found = codes(from_changelog(json.dumps(row | change).encode(), PINNED, ID))
        assert code in found
        assert code != "property_invalid" or len(found) == 2
    del row["state"]
    assert codes(from_changelog(json.dumps(row).encode(), PINNED, ID)) == ["property_missing"]


# -- broken invariants


def step(row: Instance, step_id: str = "talk", **change: Any) -> Instance:
    return replace(row, steps=row.steps | {step_id: replace(row.steps[step_id], **change)})


def timer(row: Instance, timer_id: str, due: int, attempt: int = 1) -> Instance:
    return replace(row, timers=row.timers | {timer_id: Timer(due, attempt)})


@pytest.mark.parametrize(
    ("bend", "code"),
    [
        (lambda r: replace(r, version=0), "version_invalid"),
        (lambda r: replace(r, updated_at=BEGIN - 1), "updated_before_created"),
        (lambda r: replace(r, status=CeremonyStatus.CANCELLED), "ended_at"),
        (lambda r: replace(r, status=CeremonyStatus.CANCELLED, ended_at=1), "step_lives_after_end"),
        (lambda r: replace(r, status=CeremonyStatus.CANCELLED, ended_at=1), "timers_after_end"),
        (lambda r: replace(r, status=CeremonyStatus.PAUSED), "paused_at"),
        (lambda r: replace(r, command_digests=("x",) * 3, command_ids=()), "digests_without_ids"),
        (lambda r: replace(r, asked_triggers=(AskedTrigger("talk", "a", "go", 1),)), "triggers_without_pause"),
        (lambda r: replace(r, asked_triggers=(AskedTrigger("who", "a", "go", 1),)), "trigger_step_unknown"),
        (lambda r: replace(r, command_ids=("x",) * 65), "too_many_command_ids"),
        (lambda r: replace(r, size=r.size + 1), "size_differs"),
        (lambda r: replace(r, inputs={"a": "x" * 2_000_000}), "size_exceeded"),
        (lambda r: replace(r, timers={}), "timer_missing"),
        (lambda r: replace(r, timers={}), "timers_of_life"),
        (lambda r: timer(r, "timeout/talk", 1, 7), "timer_attempt"),
        (lambda r: timer(r, "retry/talk", 1), "timer_of_nothing"),
        (lambda r: timer(r, "timeout/talk", -1), "timer_due"),
        (lambda r: replace(r, steps={}), "steps_differ"),
        (lambda r: step(r, phase=Phase.GATE), "step_phase"),
        (lambda r: step(r, output=1), "step_has_output"),
        (lambda r: step(r, status=StepStatus.FAILED, phase=Phase.NONE), "step_without_code"),
        (lambda r: step(r, status=StepStatus.COMPLETED, phase=Phase.NONE, output=1), "step_keeps_answers"),
        (lambda r: step(r, attempt=0), "attempt_missing"),
        (lambda r: step(r, tries=-1), "number_negative"),
        (lambda r: replace(r, visits={"RUN": -1}), "number_negative"),
        (lambda r: replace(r, created_at=-1), "number_negative"),
        (lambda r: step(r, status=StepStatus.WAITING_FOR_HUMAN, phase=Phase.GATE, answers={}), "not_a_gate"),
        (lambda r: replace(r, state="NOWHERE"), "state_unknown"),
        (lambda r: replace(r, state="DONE"), "status_of_state"),
        (lambda r: replace(r, state="ASK"), "step_lives_elsewhere"),
        (lambda r: replace(r, state="ASK"), "visit_missing"),
        (lambda r: replace(r, visits=r.visits | {"X": 1}), "visit_unknown"),
        (lambda r: replace(r, guard_approvals={"x": ()}), "guard_unknown"),
        (lambda r: replace(r, selected=("x",)), "selected_unknown"),
        (lambda r: replace(r, definition_hash="x"), "definition_missing"),
        (lambda r: replace(r, definition_name="x"), "definition_name_differs"),
        (lambda r: replace(r, ceremony_id="x"), "ids_differ"),
    ],
)
def test_each_broken_invariant_has_its_code(world: World, bend: Callable[[Instance], Instance], code: str) -> None:
    """In the changelog and, but for sizes, which a document has counted anew, in both stores."""
    # specification 28.2
    bent = bend(world.live)
    found = {source: codes(one) for source, one in all_forms(bent).items()}
    assert code in found["changelog"], found
    if code not in ("size_differs", "step_keeps_answers"):
        assert code in found["valkey"] and code in found["neo4j"], found


@pytest.mark.parametrize(
    ("bend", "code"),
    [
        (lambda r: replace(r, status=CeremonyStatus.RUNNING, ended_at=0), "stub_not_ended"),
        (lambda r: replace(r, inputs={"a": 1}), "stub_not_empty"),
        (lambda r: replace(r, timers={}), "stub_timers"),
    ],
)
def test_each_broken_invariant_of_a_stub_has_its_code(bend: Callable[[Instance], Instance], code: str) -> None:
    # specification 28.2
    world = World(DEFINITION)
    world.start()
    world.cancel()
    world.fire("expire")
    assert codes(from_changelog(encode_instance(bend(world.live)), PINNED, ID)) == [code]


def test_a_live_row_that_waits_for_nothing_is_stuck(world: World) -> None:
    # specification 28.2
    idle = {"talk": StepState(), "gate": StepState()}
    timers = {"ceremony_max": world.live.timers["ceremony_max"]}
    idle_row = replace(world.live, steps=idle, timers=timers, size=world.live.inputs_size)
    assert codes(all_forms(idle_row)["neo4j"]) == ["stuck"]


def test_a_definition_that_cannot_be_used_has_its_code(world: World) -> None:
    # specification 28.2
    unreadable = "steps: []\n"
    for text, code in ((None, "definition_missing"), (unreadable, "definition_altered")):
        texts = {} if text is None else {DEFINITION.hash: text}
        assert codes(all_forms(world.live, pinned_in(texts.get, KINDS))["valkey"]) == [code]
    digest = content_hash(unreadable)
    forged = replace(world.live, definition_hash=digest)
    found = codes(all_forms(forged, pinned_in({digest: unreadable}.get, KINDS))["valkey"])
    assert found == ["definition_unreadable"]


def test_many_breaches_are_cut(world: World) -> None:
    forged = replace(world.live, visits={f"S{number}": -1 for number in range(500)})
    assert len(all_forms(forged)["valkey"].breaches) == MOST_BREACHES


def test_a_breach_is_a_text_with_a_code() -> None:
    breach = Breach("code", "words")
    assert (breach, breach.code, f"{breach}") == ("words", "code", "words")


@QUICK
@given(st.randoms(use_true_random=False))
def test_no_spoiled_form_raises_and_none_passes_that_the_fold_would_refuse(rng: Random) -> None:
    """Random values in random places: the answer is a sound instance or a list, never an exception."""
    world = begun(rng)
    hostile = Hostile(world, rng)
    for _ in range(8):
        if world.row is not None:  # a Restore may have put a tombstone in its place
            hostile.move()
    if world.row is None or world.row.expired:
        return
    pinned = pinned_in({world.definition.hash: world.definition.text}.get, KINDS)
    spoiled = document(world.row)
    for _ in range(rng.randint(1, 3)):
        _spoil(spoiled, rng, hostile)
    try:
        value = json.dumps(spoiled).encode()
    except (ValueError, RecursionError):
        return
    found = from_valkey(value, pinned, ID)
    assert (found.instance is None) == bool(found.breaches)
    assert all(breach.code and str(breach) for breach in found.breaches)
    if found.instance is not None:
        assert found.instance.status in TERMINAL or found.instance.timers


def _spoil(value: Any, rng: Random, hostile: Hostile) -> None:
    while isinstance(value, dict) and value:
        key = rng.choice(list(value))
        if not isinstance(value[key], dict) or rng.random() < 0.3:
            value[key] = rng.choice((None, 0, -1, 2**63, "", "x", [], {}, 1.5, True, hostile.value()))
            return
        value = value[key]


def test_a_definition_of_a_store_is_read_once() -> None:
    asked: list[str] = []

    def texts(digest: str) -> str:
        asked.append(digest)
        return DEFINITION.text

    pinned = pinned_in(texts, KINDS)
    found = [pinned(DEFINITION.hash) for _ in range(3)]
    assert all(isinstance(one, Definition) for one in found)
    assert asked == [DEFINITION.hash]


def test_redacted_paths_come_back(world: World) -> None:
    def redact(texts: bytes) -> tuple[Any, tuple[str, ...]]:
        return msgspec.json.decode(texts), ("$.inputs.a",)

    found = from_valkey(valkey_json(document_of(world.live, redact)), PINNED, ID)
    assert (found.redacted, found.breaches) == (("$.inputs.a",), ())


def test_the_specification_lists_every_code() -> None:
    """But for those of a change from one row to the next, and of a row beside the wrong definition."""
    # specification 28.2
    of_a_change = {"version_step", "updated_at_went_back", "final_status_changed", "size_grew", "definition_differs"}
    written = {
        code
        for name in ("invariants", "rehydrate")
        for code in re.findall(r'(?:Breach|_broken)\(\s*"([a-z_]+)"', (ROOT / f"tables/{name}.py").read_text())
    }
    section = (ROOT / "docs/specification.md").read_text().partition("**28.2**")[2].partition("**28.3**")[0]
    assert written - of_a_change == set(re.findall(r"`([a-z_]+)`", section))
