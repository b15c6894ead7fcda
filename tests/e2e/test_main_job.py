"""The main job, end to end, on both logs: every example definition runs to its end and publishes its events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from ports.log import Record
from tests.contract.asyncapi import validate_message
from tests.e2e.world import INPUTS, SPECS, Message, World, until
from tests.services import KafkaServer

pytestmark = pytest.mark.asyncio(loop_scope="module")
CORRELATION = "corr-main-job"
ENVELOPE = {"event_type", "payload", "idempotency_key", "correlation_id", "timestamp", "producer", "metadata"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "kafka"])
async def world(
    request: pytest.FixtureRequest, kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A world in which every definition has run to its end."""
    folder = tmp_path_factory.mktemp("main-job")
    url = f"kafka://{kafka.bootstrap}" if request.param == "kafka" else f"sqlite://{folder}/log.db"
    async with World(folder, url, CEREMONY_TOPIC_PREFIX=f"main-{uuid4().hex[:8]}") as made:
        for name in INPUTS:
            await made.start(name, f"C-{name}", correlation_id=f"{CORRELATION}-{name}")
        for name in INPUTS:
            await made.finish(f"C-{name}:S1")
        await until(lambda: all_said(made), "every ceremony said that it completed")
        yield made


async def all_said(world: World) -> bool:
    ended = [m for m in await world.messages() if m.subject == "ceremony.completed"]
    return len(ended) >= len(INPUTS)


async def test_every_example_definition_has_inputs_here() -> None:
    """A new file under specs/ceremonies has to be added here."""
    assert {file.stem for file in SPECS.glob("*.yaml")} == set(INPUTS)


@pytest.mark.parametrize("name", INPUTS)
async def test_a_definition_runs_to_its_end(world: World, name: str) -> None:
    """It is COMPLETED, every step that ran is COMPLETED with an output, and nothing waits."""
    found = await world.get(f"C-{name}:S1")
    assert found.status == "COMPLETED", found
    assert not found.waiting_for
    assert not found.open_gates
    assert found.error_code == ""
    assert set(found.step_status.values()) == {"COMPLETED"}
    assert set(found.step_outputs) == set(found.step_status)


@pytest.mark.parametrize("name", INPUTS)
async def test_published_messages_match_the_asyncapi_document(world: World, name: str) -> None:
    """Each message validates against specs/asyncapi.yaml, and its envelope is exact."""
    # specification 16.1, 16.6
    found = await world.messages(f"C-{name}:S1")
    assert found
    for message in found:
        validate_message(message.subject, message.envelope)
        check_envelope(message)


def is_event(message: Message) -> bool:
    """Return whether it is an event. Messages of publish steps are not: they reach NATS in no order with the events."""
    return not message.envelope["idempotency_key"].startswith("publish/")


def check_envelope(message: Message) -> None:
    envelope = message.envelope
    caused = {"causation_id"} if envelope["idempotency_key"].startswith("publish/") else set()
    assert set(envelope) == ENVELOPE | caused
    assert envelope["event_type"] == message.subject
    assert envelope["producer"] == "ceremony-engine"
    assert envelope["metadata"] == {}
    assert message.headers["Nats-Msg-Id"] == envelope["idempotency_key"]
    stamp = datetime.fromisoformat(envelope["timestamp"])
    assert stamp.utcoffset() is not None


async def test_idempotency_keys_are_unique(world: World) -> None:
    """No two messages share one, whatever their subject."""
    # specification 16.2
    keys = [message.envelope["idempotency_key"] for message in await world.messages()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", INPUTS)
async def test_the_events_cover_the_whole_ceremony(world: World, name: str) -> None:
    """The first is started, the last completed; each step end has one, and the transitions are a path to the end."""
    # specification 16.6, 16.7
    instance_id = f"C-{name}:S1"
    found = [message for message in await world.messages(instance_id) if is_event(message)]
    assert (found[0].subject, found[-1].subject) == ("ceremony.started", "ceremony.completed")
    row = await world.get(instance_id)
    completed = [
        m.envelope["payload"]["step_id"]
        for m in found
        if m.subject == "ceremony.step.executed" and m.envelope["payload"]["status"] == "COMPLETED"
    ]
    assert sorted(completed) == sorted(row.step_status)
    moves = [m.envelope["payload"] for m in found if m.subject == "ceremony.transition.applied"]
    assert [a["to_state"] for a in moves[:-1]] == [b["from_state"] for b in moves[1:]]
    assert moves[-1]["to_state"] == row.current_state


@pytest.mark.parametrize("name", INPUTS)
async def test_the_correlation_id_is_on_every_message(world: World, name: str) -> None:
    # specification 1.7
    assert {m.envelope["correlation_id"] for m in await world.messages(f"C-{name}:S1")} == {f"{CORRELATION}-{name}"}


async def test_the_correlation_id_is_on_every_record(world: World) -> None:
    """Starts, step requests, outcomes and events carry it as a header; records of no ceremony do not."""
    # specification 1.7
    bare = [record for record in await all_records(world) if not correlated(record)]
    assert {json.loads(record.value or b"{}").get("type") for record in bare} <= {
        "put_definition",
        "noop",
        "agent_result",  # the correlation id in a NATS message is not trusted
    }


def correlated(record: Record) -> bool:
    found = dict(record.headers).get("correlation-id", b"").decode()
    return found.startswith(CORRELATION)


async def all_records(world: World) -> list[Record]:
    """All commands, step requests and events that the log still holds."""
    settings, log = world.worker.settings, world.worker.app.commit_log
    kinds = ("deliberation", "task_extraction", "aggregation", "human_gate", "publish")
    found: list[Record] = []
    for name in ("commands", "events", *(f"steps.{kind}" for kind in kinds)):
        topic = f"{settings.topic_prefix}.{name}"
        for partition, (start, end) in enumerate(await log.ends(topic)):
            async for records in log.read(topic, partition, start, end):
                found += records
    assert found
    return found


async def test_the_ray_executor_is_called_with_correlation_and_metadata(world: World) -> None:
    """Each call carries `x-correlation-id`, a task id of its own step and attempt, and the four metadata keys."""
    # specification 1.7, 15.2, 15.3, 15.4
    calls = world.ray.calls
    assert len(calls) >= 7  # backlog_review 4, planning 2, refinement 1
    for metadata, request in calls:
        told = dict(request.constraints.metadata)
        assert metadata["x-correlation-id"] == told["correlation_id"]
        assert told["correlation_id"].startswith(CORRELATION)
        assert {"instance_id", "step_id", "attempt", "task_id", "task_type"} <= told.keys()
        assert told["task_id"] == request.task_id
        assert request.task_id.endswith(f":step-{told['step_id']}:attempt-{told['attempt']}")
    extractions = [r for _, r in calls if r.constraints.metadata["task_type"] == "TASK_EXTRACTION"]
    assert [[a.id for a in r.agents] for r in extractions] == [["agent-task-extractor-001"]] * len(extractions)


@pytest.mark.parametrize(
    ("name", "step_id", "subject"),
    [
        ("backlog_review", "publish_review", "ceremony.backlog_review.reviewed"),
        ("planning", "publish_plan", "ceremony.planning.planned"),
        ("refinement", "publish_refined", "ceremony.refinement.refined"),
    ],
)
async def test_a_publish_step_publishes_between_its_announcements(
    world: World, name: str, step_id: str, subject: str
) -> None:
    """Its message has the key of step and visit, and `.completed` holds its place in the stream."""
    # specification 9.6, 9.7
    found = await world.messages(f"C-{name}:S1")
    (own,) = [m for m in found if m.subject == subject]
    (requested,) = [m for m in found if m.subject == "ceremony.publish.requested"]
    (completed,) = [m for m in found if m.subject == "ceremony.publish.completed"]
    key = f"publish/C-{name}:S1/{step_id}/1"
    assert own.envelope["idempotency_key"] == key
    assert requested.envelope["payload"]["idempotency_key"] == key
    assert completed.envelope["payload"]["idempotency_key"] == key
    assert own.sequence < completed.sequence
    told = completed.envelope["payload"]
    assert (told["stream"], told["sequence"], told["duplicate"]) == ("CEREMONY", own.sequence, False)


async def test_outputs_are_those_of_the_specification(world: World) -> None:
    """The outputs of a backlog review, step by step."""
    # specification 5.7, 6.5, 8.4, 9.10, 14.10
    found = await world.get("C-backlog_review:S1")
    outputs = {step: json.loads(text) for step, text in found.step_outputs.items()}
    architect = outputs["deliberate_architect"]
    assert (architect["role"], architect["num_agents"], len(architect["deliberations"])) == ("ARCHITECT", 3, 3)
    assert set(architect) == {"task_id", "deliberation_id", "role", "num_agents", "status", "deliberations"}
    assert set(outputs["extract_tasks"]) == {"source", "task_id", "deliberation_id", "status", "tasks"}
    assert outputs["approve_story"]["approved"] is True
    assert outputs["approve_story"]["decided_by"] == "person-0"
    review = outputs["publish_review"]
    assert (review["published"], review["payload"]["approved_by"]) == (True, "person-0")
    assert review["payload"]["tasks"] == outputs["extract_tasks"]["tasks"]
    for text in found.step_outputs.values():
        assert text == sorted_json(json.loads(text))


def sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


async def test_a_plan_that_scores_low_waits_for_its_owner(world: World) -> None:
    """Without the fast track a human guard is open, and the owner's refusal rejects the plan."""
    inputs = {"title": "Pay by card", "score": {"value": 0.2}}
    instance_id = await world.start("planning", "C-low", inputs=inputs)
    await until(lambda: waits(world, instance_id), "the plan waits for its owner")
    await world.client.decide(instance_id, guard="owner_refuses", approved=True, actor="ola", role="PRODUCT_OWNER")
    found = await world.finish(instance_id)
    assert (found.status, found.current_state) == ("COMPLETED", "TURNED_DOWN")


async def waits(world: World, instance_id: str) -> bool:
    return bool((await world.get(instance_id)).open_gates)


async def test_a_rejected_gate_starts_another_round(world: World) -> None:
    """`on_failure` leads back; the state's steps run again with a higher attempt and the next visit."""
    # specification 8.5, 11.10
    instance_id = await world.start("refinement", "C-round")
    await until(lambda: waits(world, instance_id), "the first round waits for reviewers")
    found = await world.client.decide(instance_id, step_id="agree", approved=False, actor="rosa", role="REVIEWER")
    assert found.current_state == "REFINING"
    await until(lambda: waits(world, instance_id), "the second round waits for reviewers")
    found = await world.get(instance_id)
    assert (found.open_gates[0].visit, found.step_attempts["refine"]) == (2, 2)
    found = await world.finish(instance_id)
    assert (found.status, found.current_state) == ("COMPLETED", "REFINED")


async def test_a_trigger_moves_past_an_open_gate(world: World) -> None:
    """`decline` leaves the state of the gate: its step is CANCELLED, with an event before the transition."""
    # specification 12.8, 13.5
    instance_id = await world.start("approval", "C-trigger")
    await until(lambda: waits(world, instance_id), "the gate is open")
    found = await world.client.trigger(instance_id, "decline", actor="tom", role="")
    assert (found.status, found.current_state, found.step_status["ask"]) == ("COMPLETED", "DECLINED", "CANCELLED")

    async def told() -> list[Message]:
        all_messages = await world.messages(instance_id)
        return all_messages if all_messages[-1].subject == "ceremony.completed" else []

    subjects = [m.subject for m in await until(told, "the end was published")]
    assert subjects.index("ceremony.transition.applied") > subjects.index("ceremony.step.executed")
