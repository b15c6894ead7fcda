"""Judging messages of AGENT_RESPONSES: command, foreign or malformed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.msg import Msg

from bridge.nats.response_messages import (
    BACKLOG_REVIEW,
    COMPLETED,
    EXTRACTOR,
    FAILED,
    SUBJECTS,
    TASK_EXTRACTION,
    Foreign,
    Malformed,
    stream_sequence,
    to_command,
)
from tables.commands import AgentResult, decode_command, encode_command

TASK = "ceremony-c-1:story-s.1:role-DEV:step-review_dev:attempt-2"
EXTRACTION = "ceremony-c-1:story-s.1:task-extraction:step-extract:attempt-3"
STREAM = "AGENT_RESPONSES"


def message(payload: Any, **fields: Any) -> bytes:
    envelope = {
        "event_type": "agent.response.completed",
        "payload": payload,
        "idempotency_key": "agent-response:x",
        "correlation_id": "random-of-the-sender",
        "timestamp": "2026-01-31T12:00:00Z",
        "producer": "ray-executor",
        **fields,
    }
    return json.dumps({name: value for name, value in envelope.items() if value is not ...}).encode()


def completed(**changes: Any) -> dict[str, Any]:
    payload = {"task_id": TASK, "agent_id": "agent-dev-001", "role": "DEV", "status": "completed", "proposal": "Do it"}
    return {name: value for name, value in {**payload, **changes}.items() if value is not ...}


def command(subject: str, payload: Any, sequence: int = 7) -> AgentResult:
    found = to_command(subject, message(payload), STREAM, sequence)
    assert isinstance(found, AgentResult), found
    return found


def malformed(subject: str, data: bytes) -> Malformed:
    found = to_command(subject, data, STREAM, 7)
    assert isinstance(found, Malformed), found
    return found


@pytest.mark.parametrize("subject", [COMPLETED, BACKLOG_REVIEW])
def test_a_completed_response_becomes_a_result_of_its_attempt(subject: str) -> None:
    """Instance, step and attempt come from the task id; the sender's correlation id is not used."""
    # specification 17.3
    found = command(subject, completed())
    assert (found.instance_id, found.step_id, found.attempt) == ("c-1:s.1", "review_dev", 2)
    assert (found.agent_id, found.role, found.value, found.size) == ("agent-dev-001", "DEV", "Do it", len('"Do it"'))
    assert (found.error_code, found.trigger) == ("", "")
    assert b"random-of-the-sender" not in encode_command(found)


OURS = {"task_id": TASK, "correlation_id": "corr-1"}


@pytest.mark.parametrize(
    ("changes", "correlation_id"),
    [
        ({"constraints": {"metadata": OURS}}, "corr-1"),
        ({"metadata": OURS}, "corr-1"),
        ({}, ""),
        ({"correlation_id": "of the sender"}, ""),
        ({"metadata": {**OURS, "correlation_id": " "}}, ""),
        ({"metadata": {**OURS, "correlation_id": 7}}, ""),
        ({"metadata": {**OURS, "correlation_id": "c" * 257}}, ""),
    ],
)
def test_a_command_carries_the_correlation_id_of_our_own_metadata(changes: dict[str, Any], correlation_id: str) -> None:
    # specification 17.3
    assert command(COMPLETED, completed(**changes)).correlation_id == correlation_id


def test_step_ids_and_roles_may_have_any_length_of_a_definition() -> None:
    long = TASK.replace("review_dev", "r" * 500).replace("DEV", "D" * 128)
    assert command(COMPLETED, completed(task_id=long)).step_id == "r" * 500


def test_a_proposal_may_be_an_object() -> None:
    # specification 5.5
    assert command(COMPLETED, completed(proposal={"content": "x", "n": [1]})).value == {"content": "x", "n": [1]}


def test_an_extraction_becomes_the_extractors_list_of_tasks() -> None:
    """It names no agent, and an empty list is a result too."""
    tasks = [{"title": "t", "estimated_hours": 2.5}]
    found = command(TASK_EXTRACTION, {"task_id": EXTRACTION, "story_id": "s.1", "ceremony_id": "c-1", "tasks": tasks})
    assert (found.step_id, found.attempt, found.agent_id, found.value) == ("extract", 3, EXTRACTOR, tasks)
    assert command(TASK_EXTRACTION, {"task_id": EXTRACTION, "tasks": []}).value == []


@pytest.mark.parametrize(
    ("subject", "changes"),
    [
        (FAILED, {"error": "no memory", "error_type": "OutOfMemoryError", "proposal": ...}),
        (COMPLETED, {"status": "failed", "error": "no memory", "error_type": "OutOfMemoryError"}),
    ],
)
def test_a_failed_subject_or_status_becomes_a_failed_result(subject: str, changes: dict[str, Any]) -> None:
    found = command(subject, completed(**changes))
    assert (found.error_code, found.error_message) == ("agent_failed", "OutOfMemoryError: no memory")
    assert found.value is None


def test_a_failed_extraction_counts_as_the_extractors() -> None:
    """Its agent id is replaced, so that all answers of an attempt have the same agent."""
    assert command(FAILED, {"task_id": EXTRACTION, "agent_id": "x", "error": "e"}).agent_id == EXTRACTOR


def test_an_extractors_failure_also_counts_under_the_generic_subject() -> None:
    """Only its unchecked answer is ignored; the checked one follows on the subject of extractions."""
    found = command(COMPLETED, completed(task_id=EXTRACTION, status="failed", error="e"))
    assert (found.step_id, found.agent_id, found.error_code) == ("extract", EXTRACTOR, "agent_failed")


@pytest.mark.parametrize(
    "places",
    [
        {"constraints": {"metadata": {"task_id": TASK}}, "metadata": {"task_id": EXTRACTION}, "task_id": EXTRACTION},
        {"constraints": {"metadata": {}}, "metadata": {"task_id": TASK}, "task_id": EXTRACTION},
        {"constraints": "none", "task_id": TASK},
    ],
)
def test_a_failure_is_routed_by_constraints_then_metadata_then_task_id(places: dict[str, Any]) -> None:
    """The order follows specification 17.3."""
    # specification 17.3
    assert command(FAILED, completed(**places)).step_id == "review_dev"


def test_a_shortened_task_id_is_routed_by_metadata() -> None:
    """The executor may cut off the suffix; the engine's four keys in the metadata hold the same."""
    # specification 17.3
    metadata = {"instance_id": "c-1:s.1", "step_id": "review_dev", "attempt": "2"}
    short = completed(task_id="ceremony-c-1:story-s.1:role-DEV", constraints={"metadata": metadata})
    found = command(COMPLETED, short)
    assert (found.instance_id, found.step_id, found.attempt) == ("c-1:s.1", "review_dev", 2)


@pytest.mark.parametrize(
    ("subject", "payload", "reason"),
    [
        (COMPLETED, completed(task_id="job-77"), "other_task"),
        (COMPLETED, completed(task_id=...), "no_task"),
        (COMPLETED, completed(task_id=12), "no_task"),
        (COMPLETED, completed(task_id="ceremony-c:story-s:role-DEV"), "unroutable"),
        (COMPLETED, completed(task_id=TASK + ":more"), "unroutable"),
        (COMPLETED, completed(task_id=TASK + ":step-other:attempt-1"), "unroutable"),
        (COMPLETED, completed(task_id="ceremony-../x:story-s:role-DEV:step-a:attempt-1"), "unroutable"),
        (COMPLETED, completed(task_id=EXTRACTION), "other_kind"),
        (TASK_EXTRACTION, {"task_id": TASK, "tasks": []}, "other_kind"),
        (FAILED, {"error": "x"}, "no_task"),
    ],
)
def test_a_message_of_no_attempt_is_foreign(subject: str, payload: dict[str, Any], reason: str) -> None:
    """Other services use the same subjects; such messages are counted by reason and are no error."""
    # specification 17.4
    assert to_command(subject, message(payload), STREAM, 1) == Foreign(reason)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "message_undecodable"),
        (b"{", "message_undecodable"),
        (b"\xff\xfe", "message_undecodable"),
        (b"[1]", "envelope_invalid"),
        (b'{"payload": {}}', "envelope_invalid"),
        (message("text"), "envelope_invalid"),
        (message([1]), "envelope_invalid"),
        (message(completed(), producer=...), "envelope_invalid"),
        (message(completed(), idempotency_key=""), "envelope_invalid"),
        (message(completed(), correlation_id=" "), "envelope_invalid"),
        (message(completed(), metadata=None), "envelope_invalid"),
        (message(completed(), timestamp=5), "envelope_invalid"),
        (message(completed(agent_id=...)), "agent_id_missing"),
        (message(completed(agent_id=5)), "payload_invalid"),
        (message(completed(trigger={"a": 1})), "payload_invalid"),
        (message(completed(role="R" * 300)), "payload_invalid"),
        (b'{"payload":{"a":' + b"[" * 100_000, "message_too_deep"),
    ],
)
def test_a_message_that_breaks_the_specification_is_malformed_with_a_code(data: bytes, code: str) -> None:
    """It becomes a dead letter with the reason."""
    # specification 17.5
    assert malformed(COMPLETED, data).code == code


@pytest.mark.parametrize(("depth", "fits"), [(62, True), (63, False)])
def test_a_message_may_nest_64_containers(depth: int, *, fits: bool) -> None:
    """Envelope and payload are two of these containers."""
    # specification 17.5, 20.1
    nested: Any = 1
    for _ in range(depth):
        nested = {"a": nested}
    found = to_command(COMPLETED, message(completed(proposal=nested)), STREAM, 1)
    assert isinstance(found, AgentResult) is fits
    assert fits or found == Malformed("message_too_deep", "deeper than 64 nested containers")


@pytest.mark.parametrize(("size", "kept"), [(256 * 1024, True), (256 * 1024 + 1, False)])
def test_a_result_over_256_kib_keeps_only_its_size(size: int, *, kept: bool) -> None:
    """The fold then fails the attempt."""
    # specification 17.7
    text = "x" * (size - 2)
    found = command(COMPLETED, completed(proposal=text))
    assert found.size == size
    assert found.value == (text if kept else None)


@pytest.mark.parametrize(
    ("subject", "payload", "code"),
    [
        (COMPLETED, completed(proposal=...), "proposal_missing"),
        (COMPLETED, completed(proposal=[1]), "proposal_malformed"),
        (TASK_EXTRACTION, {"task_id": EXTRACTION, "tasks": {"a": 1}}, "tasks_malformed"),
        (TASK_EXTRACTION, {"task_id": EXTRACTION}, "tasks_malformed"),
    ],
)
def test_an_answer_of_the_wrong_shape_fails_the_agent(subject: str, payload: dict[str, Any], code: str) -> None:
    """The attempt is known, so it does not wait for its timeout."""
    # specification 17.7
    assert command(subject, payload).error_code == code


def test_a_trigger_is_part_of_the_result() -> None:
    assert command(COMPLETED, completed(trigger="approve")).trigger == "approve"


def test_the_command_id_depends_on_task_and_agent_only() -> None:
    """A redelivered or repeated answer is one command; another agent, attempt or task gives another."""
    # specification 17.6
    first = command(COMPLETED, completed(), sequence=1).command_id
    assert command(COMPLETED, completed(), sequence=2).command_id == first
    assert command(COMPLETED, completed(agent_id="agent-dev-002")).command_id != first
    assert command(COMPLETED, completed(task_id=TASK.replace("attempt-2", "attempt-3"))).command_id != first


def test_without_a_task_id_the_command_id_depends_on_stream_and_sequence() -> None:
    metadata = {"instance_id": "c-1:s.1", "step_id": "review_dev", "attempt": 2}
    payload = completed(task_id=..., metadata=metadata)
    assert command(COMPLETED, payload, sequence=9).command_id == "nats/AGENT_RESPONSES/9"


@pytest.mark.parametrize("value", ["x\ud800", "\udc00y", "\x00", "é" * 10, "1e999", 10**40, -0.0, {"": ""}])
def test_odd_values_are_either_kept_or_refused(value: Any) -> None:
    """A command can be written to the log and read back unchanged."""
    found = to_command(COMPLETED, message(completed(proposal=value)), STREAM, 1)
    if isinstance(found, AgentResult):
        assert decode_command(encode_command(found)) == found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["task_id", "agent_id", "role", "status", "proposal", "tasks", "constraints", "metadata", "trigger", "error"]
)
task_ids = st.sampled_from([TASK, EXTRACTION, "ceremony-x", "job", ""])


@pytest.mark.uncounted
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded host is no failure
@given(
    st.sampled_from(SUBJECTS),
    st.binary() | st.builds(lambda p, t: message({**p, "task_id": t}), st.dictionaries(keys, json_values), task_ids),
)
def test_no_message_raises_an_exception(subject: str, data: bytes) -> None:
    """Every message gives one of the three verdicts, and every command can be encoded."""
    found = to_command(subject, data, STREAM, 1)
    assert isinstance(found, AgentResult | Foreign | Malformed)
    if isinstance(found, AgentResult):
        assert decode_command(encode_command(found)) == found


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.AGENT_RESPONSES.durable.1.42.7.1769860800000000000.3",
        "$JS.ACK.hub.ACCOUNT.AGENT_RESPONSES.durable.1.42.7.1769860800000000000.3.token",
        "$JS.ACK._.ACCOUNT.AGENT_RESPONSES.durable.1.42.7.1769860800000000000.3.token",
    ],
)
def test_the_sequence_equals_the_one_that_nats_py_reads(reply: str) -> None:
    assert stream_sequence(reply) == Msg(None, reply=reply).metadata.sequence.stream == 42  # type: ignore[arg-type]
