"""The documents of a row: their properties, and that nothing but answers to a live attempt is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from tables.instance import CeremonyStatus, Instance, StepState, StepStatus
from tables.read_model import EngineState, document_of, neo4j_properties, nothing_redacted, valkey_json
from tests.tables.properties.play import begun
from tests.tables.properties.players import Hostile
from tests.tables.world import ID, World, definition_of

BODY = """
states:
  - {id: OPEN, description: open, initial: true}
  - {id: DONE, description: done, terminal: true}
transitions:
  - {from: OPEN, to: DONE, trigger: finish, guards: [agreed], description: finish}
roles:
  - {id: LEAD, description: leads, allowed_actions: [ask, finish]}
guards:
  agreed: {type: human, check: a person agrees, role: LEAD}
steps:
  - {id: gather, state: OPEN, handler: aggregation_step, config: {sources: [token], aggregation_type: list}}
  - {id: ask, state: OPEN, handler: human_gate_step, config: {role: LEAD, message: All right?}}
"""
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def started() -> World:
    """A ceremony whose first step is completed and whose gate is open."""
    world = World(definition_of("inputs: {optional: [token]}" + BODY))
    world.start(token="abc")
    world.done("gather", {"aggregated_result": ["abc"]})
    world.opened("ask")
    return world


def row_of(properties: Mapping[str, Any]) -> Instance:
    """Put a row together again from the properties of a node."""
    engine = msgspec.json.decode(properties["engine"], type=EngineState)
    outputs = json.loads(properties["step_outputs_json"])
    statuses = json.loads(properties["step_status_json"])
    kept = {name: value for name, value in asdict(engine).items() if name not in {"format", "row_format", "redacted"}}
    steps = {i: replace(s, status=StepStatus(statuses[i]), output=outputs.get(i)) for i, s in engine.steps.items()}
    return Instance(
        **{**kept, "steps": steps},
        format=engine.row_format,
        instance_id=properties["instance_id"],
        definition_name=properties["definition_name"],
        correlation_id=properties["correlation_id"],
        state=properties["current_state"],
        status=CeremonyStatus(properties["status"]),
        version=properties["version"],
        command_ids=tuple(json.loads(properties["idempotency_keys_json"])),
    )


def without_answers(row: Instance) -> Instance:
    steps: dict[str, StepState] = {step_id: replace(step, answers={}) for step_id, step in row.steps.items()}
    return replace(row, steps=steps)


def test_the_document_in_valkey_has_the_properties_that_others_read() -> None:
    # specification 25.1
    row = started().live
    document = json.loads(valkey_json(document_of(row, nothing_redacted)))
    engine = document.pop("engine")
    assert document == {
        "instance_id": ID,
        "definition_name": "probe",
        "definition_hash": row.definition_hash,
        "current_state": "OPEN",
        "status": row.status,
        "version": row.version,
        "correlation_id": row.correlation_id,
        "step_status": {step_id: step.status for step_id, step in row.steps.items()},
        "step_outputs": {i: step.output for i, step in row.steps.items() if step.output is not None},
        "inputs": row.inputs,
        "idempotency_keys": list(row.command_ids),
        "created_at": "2023-11-14T22:13:20.000Z",
        "updated_at": document["updated_at"],
    }
    assert document["step_outputs"]["gather"] == {"aggregated_result": ["abc"]}
    assert engine["definition_hash"] == row.definition_hash
    assert engine["visits"] == {"OPEN": 1}
    assert engine["steps"]["gather"]["attempt"] == 1
    assert engine["inputs"] == row.inputs
    assert "redacted" not in engine


def test_a_document_begins_with_version_and_creation() -> None:
    """The script in Valkey compares them without decoding the rest."""
    row = started().live
    document = valkey_json(document_of(row, nothing_redacted))
    assert document.startswith(b'{"version":%d,"created_at":"2023-11-14T22:13:20.000Z",' % row.version)


def test_the_node_in_neo4j_has_maps_as_json_texts() -> None:
    # specification 25.1
    row = started().live
    properties = neo4j_properties(document_of(row, nothing_redacted))
    document = json.loads(valkey_json(document_of(row, nothing_redacted)))
    assert set(properties) == {
        "instance_id",
        "definition_name",
        "current_state",
        "status",
        "version",
        "step_status_json",
        "step_outputs_json",
        "correlation_id",
        "idempotency_keys_json",
        "created_at",
        "updated_at",
        "engine",
    }
    for name in ("step_status", "step_outputs", "idempotency_keys"):
        assert json.loads(str(properties[f"{name}_json"])) == document[name]
    assert json.loads(str(properties["engine"])) == document["engine"]


@QUICK
@given(st.randoms(use_true_random=False))
def test_a_row_can_be_put_together_from_its_document_but_for_answers_to_the_live_attempt(rng: Random) -> None:
    # specification 25.2
    world = begun(rng)
    hostile = Hostile(world, rng)
    for _ in range(40):
        hostile.move()
        if world.row is None or world.row.expired:
            return
        properties = neo4j_properties(document_of(world.row, nothing_redacted))
        assert row_of(properties) == without_answers(world.row)


def test_redacted_texts_are_named_by_their_paths() -> None:
    # specification 25.2
    def redact(texts: bytes) -> tuple[Any, Sequence[str]] | None:
        assert b"start_digest" not in texts and b"command_digests" not in texts
        return json.loads(texts.replace(b"abc", b"[redacted:test]")), ["$.inputs.token"]

    row = started().live
    document = document_of(row, redact)
    written = valkey_json(document)
    assert b"abc" not in written.replace(row.definition_hash.encode(), b"").replace(row.start_digest.encode(), b"")
    properties = json.loads(written)
    assert properties["inputs"]["token"] == properties["engine"]["inputs"]["token"] == "[redacted:test]"
    assert properties["step_outputs"]["gather"] == {"aggregated_result": ["[redacted:test]"]}
    assert properties["engine"]["redacted"] == ["$.inputs.token"]
    assert properties["engine"]["start_digest"] == row.start_digest
    assert properties["engine"]["definition_hash"] == row.definition_hash
