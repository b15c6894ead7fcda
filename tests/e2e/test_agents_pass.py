"""Records pass real Faust agents; foreign, malformed and missing messages of neighbours do no harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import faust
import pytest
import pytest_asyncio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from prometheus_client.parser import text_string_to_metric_families

from streams.topics import STEP_KINDS, prefixed, step_topic
from tables.effects import StepRequested, encode_request
from tables.instance import Phase
from tests.bridge.nats.world import client
from tests.e2e.world import World, until
from tests.services import KafkaServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "kafka"])
async def world(
    request: pytest.FixtureRequest, kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("agents")
    url = f"kafka://{kafka.bootstrap}" if request.param == "kafka" else f"sqlite://{folder}/log.db"
    async with World(folder, url, CEREMONY_TOPIC_PREFIX=f"agents-{uuid4().hex[:8]}") as made:
        yield made


async def all_in(world: World, instance_id: str) -> pb.PlanningCeremonyInstance:
    """The ceremony, once its first gate is open."""

    async def waits() -> pb.PlanningCeremonyInstance | None:
        found = await world.get(instance_id)
        return found if found.open_gates else None

    found: pb.PlanningCeremonyInstance = await until(waits, f"a gate of {instance_id} is open")
    return found


def fresh() -> str:
    return f"c-{uuid4().hex[:10]}"


async def ask(world: World, instance_id: str, step: str, kind: str, body: Any) -> None:
    """Append the request of the step's first attempt, as a release did that finished no step in the fold."""
    request = StepRequested(
        id=f"{instance_id}/1/1@2",
        kind=kind,
        instance_id=instance_id,
        step_id=step,
        attempt=1,
        visit=1,
        deadline=0,
        correlation_id=instance_id,
        body=body,
    )
    log = world.worker.app.driver.log
    key = instance_id.encode()
    topic = prefixed(world.worker.settings.topic_prefix, step_topic(kind))
    await log.append(topic, log.partition_of(key, world.worker.settings.partitions), key, encode_request(request))


async def test_a_record_of_each_kind_passes_its_faust_agent(world: World) -> None:
    """The parts below the agents count them, and so does Faust's monitor on each agent's stream."""
    app: Any = world.worker.app
    await world.finish(instance_id := await world.start("backlog_review", fresh()))
    merged = {"aggregation_type": "merge", "sources": ["a"], "values": {"a": {}}}
    await ask(world, instance_id, "collect_review", "aggregation", merged)
    await ask(world, instance_id, "approve_story", "human_gate", {"role": "PO", "message": "m"})

    def served() -> bool:
        return all(
            any(part.counters.records for part in app.parts if part.spec.name == kind)
            for kind in ("aggregation", "human_gate")
        )

    await until(served, "the agents of what the fold settles by itself have served what they were asked")
    assert set(app.agents) == {"ceremony", *STEP_KINDS}
    for name, agent in app.agents.items():
        assert isinstance(agent, faust.Agent), name
        records = sum(part.counters.records for part in app.parts if part.spec.name == name)
        batches = sum(part.counters.batches for part in app.parts if part.spec.name == name)
        seen = sum(app.monitor.events_by_stream[str(actor.stream)] for actor in agent._actors)
        wanted = 3 if name == "deliberation" else 1
        assert records >= wanted, f"{name}: {records} records"
        assert 1 <= batches <= records
        assert seen == batches, f"{name}: Faust saw {seen} events, {batches} batches were handed over"


async def send(world: World, subject: str, data: bytes) -> int:
    """Publish as a neighbour would; return the sequence in AGENT_RESPONSES."""
    async with client(world.nats.url) as link:
        return int((await link.jetstream().publish(subject, data)).seq)


async def metric(world: World, name: str) -> float:
    _, text = await world.http("/metrics")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b"\xff\xfe", b'{"event_type": "x"}', b""])
async def test_a_malformed_message_is_a_dead_letter(world: World, body: bytes) -> None:
    """It is set aside with its origin, announced on CEREMONY and never redelivered; later messages go on."""
    # specification 17.5, 19.1, 19.3
    sequence = await send(world, "agent.response.completed", body)

    async def aside() -> list[pb.DeadLetter]:
        found = await world.client.dead_letters(topic="AGENT_RESPONSES", limit=1000)
        return [letter for letter in found.dead_letters if letter.offset == sequence]

    (letter,) = await until(aside, "the message is a dead letter")
    assert letter.code and letter.message and letter.size == len(body)

    async def told() -> list[Any]:
        key = f"deadletter/AGENT_RESPONSES/0/{sequence}"
        return [m for m in await world.messages() if m.envelope["idempotency_key"] == key]

    (message,) = await until(told, "the dead letter is announced")
    assert message.subject == "ceremony.deadletter"
    await world.finish(await world.start("refinement", fresh()))


async def test_a_foreign_message_is_acknowledged_and_counted(world: World) -> None:
    """Other services use the same subjects: there is no dead letter, no error, and nothing stays pending."""
    # specification 17.4
    before = await metric(world, "ceremony_nats_foreign_total")
    letters = (await world.client.dead_letters(topic="AGENT_RESPONSES")).total_count
    payload = {"task_id": "somebody-else-7", "agent_id": "a", "role": "R", "status": "completed", "duration_ms": 1}
    envelope = {
        "event_type": "agent.response.completed",
        "payload": {**payload, "timestamp": "2026-01-01T00:00:00Z", "proposal": "x"},
        "idempotency_key": uuid4().hex,
        "correlation_id": uuid4().hex,
        "timestamp": "2026-01-01T00:00:00Z",
        "producer": "somebody",
        "metadata": {},
    }
    await send(world, "agent.response.completed", json.dumps(envelope).encode())

    async def counted() -> bool:
        return await metric(world, "ceremony_nats_foreign_total") == before + 1

    await until(counted, "the foreign message is counted")
    assert (await world.client.dead_letters(topic="AGENT_RESPONSES")).total_count == letters


async def test_an_unreachable_ray_executor_is_asked_again(world: World) -> None:
    """The steps stay IN_PROGRESS in their first attempt; once it is back they end with the same task ids."""
    # specification 11.8, 15.2
    await world.stop_ray()
    instance_id = await world.start("backlog_review", fresh())

    def all_asked() -> bool:
        row = world.worker.engine.reads.get(instance_id)
        steps = [state for name, state in row.steps.items() if name.startswith("deliberate")] if row else []
        return bool(steps) and all(state.phase is Phase.UNREACHABLE for state in steps)

    await until(all_asked, "all three deliberations were asked for in vain")
    found = await world.get(instance_id)
    assert {found.step_status[f"deliberate_{who}"] for who in ("architect", "developer", "qa")} == {"IN_PROGRESS"}
    world.ray = world.new_ray()
    await world.ray.start()
    found = await world.finish(instance_id)
    assert found.status == "COMPLETED"
    assert set(found.step_attempts.values()) == {1}
    tasks = [r.task_id for _, r in world.ray.calls if r.constraints.metadata["instance_id"] == instance_id]
    assert len(set(tasks)) == 4 and all(task.endswith(":attempt-1") for task in tasks)


async def test_a_publish_waits_for_nats(world: World) -> None:
    """The step stays IN_PROGRESS while NATS is down, then publishes once; no event is missing or repeated."""
    # specification 9.9, 16.8
    instance_id = await world.start("backlog_review", fresh())
    found = await all_in(world, instance_id)
    await asyncio.to_thread(world.nats.kill)
    await world.client.decide(instance_id, step_id="approve_story", approved=True, actor="ann", role="PRODUCT_OWNER")

    def asked_in_vain() -> bool:
        row = world.worker.engine.reads.get(instance_id)
        return row is not None and row.steps["publish_review"].phase is Phase.UNREACHABLE

    await until(asked_in_vain, "the publish was tried in vain")
    found = await world.get(instance_id)
    assert (found.current_state, found.step_status["publish_review"]) == ("PUBLISHING", "IN_PROGRESS")
    await asyncio.to_thread(world.nats.start)
    found = await world.finish(instance_id)
    assert (found.status, found.step_attempts["publish_review"]) == ("COMPLETED", 1)

    async def complete() -> list[Any]:
        messages = await world.messages(instance_id)
        return messages if messages and messages[-1].subject == "ceremony.completed" else []

    messages = await until(complete, "everything was published")
    keys = [message.envelope["idempotency_key"] for message in messages]
    assert len(keys) == len(set(keys))
    assert [m.subject for m in messages].count("ceremony.backlog_review.reviewed") == 1
    executed = [
        m.envelope["payload"]["step_id"]
        for m in messages
        if m.subject == "ceremony.step.executed" and m.envelope["payload"]["status"] == "COMPLETED"
    ]
    assert sorted(executed) == sorted(found.step_status)
