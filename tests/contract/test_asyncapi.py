"""`specs/asyncapi.yaml` is a valid AsyncAPI 3 document, names every subject, and agrees with the engine."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft7Validator

from bridge.nats.response_messages import SUBJECTS
from steps.subjects import own
from streams import dead_letters, envelope
from tables.effects import Event
from tests.contract.asyncapi import MessageInvalid, document, validate_message, validator

# The engine's subjects (specification 16.6), and a reserved one (specification 9.5).
OUT = {
    *("ceremony.step.executed", "ceremony.step.retrying", "ceremony.step.ordered", "ceremony.transition.applied"),
    *("ceremony.publish.requested", "ceremony.publish.completed", "ceremony.dualwrite.reconcile.requested"),
    *(f"ceremony.{word}" for word in ("started", "completed", "failed", "cancelled", "timed_out", "paused", "resumed")),
    *("ceremony.gate.opened", "ceremony.gate.decided", "ceremony.deadletter", "ceremony.start.refused"),
}

# Field names of the AsyncAPI 3.0 specification, for its objects that are used.
ROOT = {"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"}
CHANNEL = {"address", "messages", "title", "summary", "description", "servers", "parameters", "tags", "bindings"}
OPERATION = {
    "action",
    "channel",
    "messages",
    "title",
    "summary",
    "description",
    "security",
    "tags",
    "bindings",
    "reply",
}
MESSAGE = {"headers", "payload", "correlationId", "contentType", "name", "title", "summary", "description", "examples"}
COMPONENTS = {"schemas", "messages", "servers", "channels", "operations", "parameters"}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(reference: str) -> Any:
    assert reference.startswith("#/"), f"{reference} leaves the document"
    node: Any = document()
    for part in reference[2:].split("/"):
        assert part in node, f"{reference} points nowhere"
        node = node[part]
    return node


def test_the_document_has_the_shape_of_asyncapi_3() -> None:
    """Objects with their required fields and no others: version, info, servers, channels, operations, components."""
    doc = document()
    assert re.fullmatch(r"3\.0\.\d+", doc["asyncapi"])
    assert set(doc) <= ROOT
    assert {"title", "version"} <= set(doc["info"])
    for server in doc["servers"].values():
        assert {"host", "protocol"} <= set(server)
    assert set(doc["components"]) <= COMPONENTS
    for name, channel in doc["channels"].items():
        assert set(channel) <= CHANNEL, name
        assert isinstance(channel["address"], str)
        named = set(re.findall(r"\{(\w+)\}", channel["address"]))
        assert named == set(channel.get("parameters", {})), f"{name}: address and parameters differ"
        for message in channel["messages"].values():
            assert set(message) == {"$ref"}
            assert message["$ref"].startswith("#/components/messages/")
    for name, operation in doc["operations"].items():
        assert set(operation) <= OPERATION, name
        assert operation["action"] in ("send", "receive")
        assert operation["channel"]["$ref"].startswith("#/channels/")
    for name, message in doc["components"]["messages"].items():
        assert set(message) <= MESSAGE, name
        assert "payload" in message


def test_every_reference_resolves_and_every_component_is_used() -> None:
    """An unused schema is a leftover."""
    used = set(references(document()))
    for reference in used:
        resolve(reference)
    for kind in ("schemas", "messages"):
        for name in document()["components"][kind]:
            assert f"#/components/{kind}/{name}" in used, f"nobody uses {kind}/{name}"


def test_every_schema_is_valid_json_schema() -> None:
    """Draft 7, the schema language of AsyncAPI 3 documents without `schemaFormat`."""
    for name, schema in document()["components"]["schemas"].items():
        Draft7Validator.check_schema(schema)
        assert "description" in schema or "type" in schema, name
    for message in document()["components"]["messages"].values():
        Draft7Validator.check_schema(message["payload"])


def test_every_subject_is_described_in_its_direction() -> None:
    """Sent are the engine's events and messages of publish steps, received are the four subjects of AGENT_RESPONSES."""
    # specification 16.6, 17.1
    found: dict[str, set[str]] = {"send": set(), "receive": set()}
    for operation in document()["operations"].values():
        found[operation["action"]].add(resolve(operation["channel"]["$ref"])["address"])
    assert found == {"send": OUT | {"{subject}"}, "receive": set(SUBJECTS)}


def test_no_publish_step_may_use_a_subject_of_the_document() -> None:
    # specification 9.5
    for subject in OUT:
        assert own(subject), subject


def test_an_event_type_equals_its_subject() -> None:
    """The test notices a message that was copied to another channel and not renamed."""
    for name, channel in document()["channels"].items():
        ((_, reference),) = channel["messages"].items()
        message = resolve(reference["$ref"])
        if channel["address"] in OUT:
            assert message["name"] == channel["address"], name
            assert message["payload"]["allOf"][1]["properties"]["event_type"]["const"] == channel["address"]


def event(
    subject: str, payload: dict[str, Any], key: str = "c-1:s-1/2/0@1", metadata: dict[str, str] | None = None
) -> Any:
    effect = Event(
        id=key,
        subject=subject,
        instance_id="c-1:s-1",
        correlation_id="corr",
        at=1_769_860_800_000,
        payload=payload,
        metadata=metadata,
    )
    return json.loads(envelope.event_record(effect, 1, 0, 1)[1])


APPLIED = {"instance_id": "c-1:s-1", "from_state": "A", "to_state": "B", "trigger": "go"}
FIRED_BY = {"actor": "ana", "role": "", "reason": ""}
EXECUTED = {
    "instance_id": "c-1:s-1",
    "step_id": "a",
    "status": "COMPLETED",
    "current_state": "A",
    "attempt": 1,
    "output": [1],
}


def test_an_encoded_envelope_is_valid() -> None:
    # specification 16.1
    for who in (None, FIRED_BY):
        fired = event("ceremony.transition.applied", APPLIED, metadata=who)
        validate_message("ceremony.transition.applied", fired)
    validate_message("ceremony.step.executed", event("ceremony.step.executed", EXECUTED))
    failed = EXECUTED | {"status": "FAILED", "output": {}, "error_code": "timeout", "error_message": ""}
    validate_message("ceremony.step.executed", event("ceremony.step.executed", failed))


def test_an_announced_dead_letter_is_valid() -> None:
    letter = dead_letters.decode_dead_letter(
        *dead_letters.dead_letter_record("S", 0, 4, "c", "m", key=None, value=b"1"), 1000
    )
    validate_message("ceremony.deadletter", json.loads(dead_letters.dead_letter_event(letter)[1]))


def test_a_message_of_a_publish_step_is_valid_under_every_other_subject() -> None:
    own = event("story.ready", {"anything": 1}, key="publish/c-1:s-1/publish_it/1")
    validate_message("ceremony.story.ready", own)
    with pytest.raises(MessageInvalid, match="no channel"):
        validate_message("ceremony.step.invented", own)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"producer": "planning"}, "producer"),
        ({"correlation_id": ""}, "correlation_id"),
        ({"idempotency_key": "random"}, "idempotency_key"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"event_type": "ceremony.started"}, "event_type"),
        ({"extra": 1}, "extra"),
        ({"metadata": ...}, "metadata"),
        ({"metadata": {"actor": "ana"}}, "metadata"),
        ({"metadata": {**FIRED_BY, "extra": 1}}, "extra"),
        ({"metadata": {**FIRED_BY, "reason": None}}, "reason"),
        ({"payload": {**APPLIED, "extra": 1}}, "extra"),
        ({"payload": {"instance_id": "c-1:s-1"}}, "from_state"),
        ({"payload": {**APPLIED, "trigger": ""}}, "trigger"),
    ],
)
def test_a_message_that_breaks_the_document_is_refused(change: dict[str, Any], where: str) -> None:
    """The helper that checks the running engine finds such messages."""
    envelope = copy.deepcopy(event("ceremony.transition.applied", APPLIED)) | change
    envelope = {name: value for name, value in envelope.items() if value is not ...}
    with pytest.raises(MessageInvalid, match=where):
        validate_message("ceremony.transition.applied", envelope)


def test_errors_belong_to_failed_steps_only() -> None:
    # specification 11.6
    for payload in ({**EXECUTED, "error_code": "x"}, {**EXECUTED, "status": "FAILED"}):
        with pytest.raises(MessageInvalid):
            validate_message("ceremony.step.executed", event("ceremony.step.executed", payload))


def test_messages_of_agents_are_described() -> None:
    """The incoming schemas accept the executor's messages, with and without a trigger."""
    envelope = {
        "event_type": "agent.response.completed",
        "payload": {"task_id": "t", "agent_id": "a", "status": "completed", "proposal": {"x": 1}, "trigger": "go"},
        "idempotency_key": "k",
        "correlation_id": "c",
        "timestamp": "2026-01-31T12:00:00+00:00",
        "producer": "ray-executor",
    }
    assert validator("agentCompleted").is_valid(envelope)
    assert not validator("agentTaskExtraction").is_valid(envelope)
