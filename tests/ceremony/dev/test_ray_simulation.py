"""The simulated Ray executor over real gRPC and a real nats-server, as a neighbour sees it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import nats
import pytest
from fleet.ray_executor.v1 import ray_executor_pb2 as pb
from fleet.ray_executor.v1.ray_executor_pb2_grpc import RayExecutorServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.aio.client import Client

from bridge.clock import HostClock
from bridge.ray.executor import RayExecutorClient
from ceremony.dev.ray_simulation import Knobs, RaySimulation
from ceremony.dev.ray_simulation import outbox as outbox_module
from ceremony.dev.ray_simulation.outbox import Outbox, connect
from ceremony.errors import KnobError, SimulationError
from ports.errors import Unreachable
from ports.ray import RayAgent, RayTask
from tests.services import NatsServer, free_port, running

pytestmark = pytest.mark.timeout(60)

FAST = Knobs(latency=0.02, jitter=0.01)
PROMPT = "Review the checkout story for latency, idempotency and rollback; say what an architect would change first."
ROLE_SUBJECT = "agent.response.completed.backlog-review.role"
EXTRACTION_SUBJECT = "agent.response.completed.task-extraction"
FAILED_SUBJECT = "agent.response.failed"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server for this module alone: other tests use the stream AGENT_RESPONSES too."""
    with running(NatsServer(tmp_path_factory.mktemp("ray-nats"))) as server:
        yield server


class Answers:
    """Messages received on `agent.response.>` by a plain subscription."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any], bytes]] = []
        self._news = asyncio.Event()

    async def take(self, message: Any) -> None:
        self.messages.append((message.subject, json.loads(message.data), message.data))
        self._news.set()

    async def wait(self, number: int, seconds: float = 15) -> list[tuple[str, dict[str, Any], bytes]]:
        async with asyncio.timeout(seconds):
            while len(self.messages) < number:
                self._news.clear()
                await self._news.wait()
        return self.messages


@asynccontextmanager
async def simulation(
    broker: NatsServer, knobs: Knobs = FAST, **more: Any
) -> AsyncIterator[tuple[RaySimulation, Answers]]:
    answers = Answers()
    client: Client = await nats.connect(broker.url)
    try:
        await client.subscribe("agent.response.>", cb=answers.take)
        await client.flush()
        ray = RaySimulation(grpc_address="127.0.0.1:0", nats_url=broker.url, clock=HostClock(), knobs=knobs, **more)
        async with ray:
            yield ray, answers
    finally:
        await client.close()


def review(number: int = 1, count: int = 3, **changes: Any) -> RayTask:
    task_id = f"ceremony-c{number}:story-s{number}:role-ARCHITECT:step-review:attempt-1"
    values: dict[str, Any] = {
        "task_id": task_id,
        "task_description": PROMPT,
        "role": "ARCHITECT",
        "agents": [RayAgent(f"agent-architect-{n:03}", "ARCHITECT", "llama") for n in range(1, count + 1)],
        "story_id": f"s{number}",
        "backlog_review": True,
        "metadata": {"task_id": task_id, "task_type": "BACKLOG_REVIEW_ROLE", "instance_id": f"c{number}:s{number}"},
        "vllm_model": "llama",
        "correlation_id": "ours",
    }
    return RayTask(**(values | changes))


def extraction() -> RayTask:
    task_id = "ceremony-c1:story-s1:task-extraction:step-extract:attempt-1"
    return review(
        task_id=task_id,
        task_description=f"{PROMPT}\nagent-architect-001: …\nagent-qa-001: …\nagent-qa-001 again",
        backlog_review=False,
        agents=[RayAgent("agent-task-extractor-001", "TASK_EXTRACTOR", "llama")],
        metadata={"task_type": "TASK_EXTRACTION", "ceremony_id": "c1", "task_id": task_id},
    )


async def test_a_review_is_answered_once_per_agent_in_the_full_envelope(broker: NatsServer) -> None:
    """Each agent sends one message with a random correlation id, a shared idempotency key and the metadata."""
    async with simulation(broker) as (ray, answers), RayExecutorClient(ray.url) as client:
        answer = await client.execute(review())
        assert (answer.status, bool(answer.deliberation_id)) == ("submitted", True)
        messages = await answers.wait(3)
    assert {subject for subject, _, _ in messages} == {ROLE_SUBJECT}
    envelopes = [envelope for _, envelope, _ in messages]
    for envelope in envelopes:
        assert set(envelope) == {
            "event_type", "payload", "idempotency_key", "correlation_id", "timestamp", "producer", "metadata"
        }  # fmt: skip
        assert envelope["event_type"] == "agent.response.completed"
    assert len({envelope["correlation_id"] for envelope in envelopes} | {"ours"}) == 4
    assert len({envelope["idempotency_key"] for envelope in envelopes}) == 1
    payloads = [envelope["payload"] for envelope in envelopes]
    assert {payload["agent_id"] for payload in payloads} == {f"agent-architect-00{n}" for n in (1, 2, 3)}
    assert {payload["status"] for payload in payloads} == {"completed"}
    assert len({payload["proposal"] for payload in payloads}) == 3
    for payload in payloads:
        assert payload["task_id"] == review().task_id
        assert payload["role"] == "ARCHITECT"
        assert payload["constraints"]["metadata"] == dict(review().metadata)
        assert 10 <= payload["duration_ms"] < 5_000


async def test_a_proposal_holds_words_but_no_phrase_of_the_prompt(broker: NatsServer) -> None:
    """Otherwise each publish step after a deliberation would be refused for a raw prompt."""
    async with simulation(broker) as (ray, answers), RayExecutorClient(ray.url) as client:
        await client.execute(review(count=20))
        messages = await answers.wait(20)
    words = set(re.findall(r"[a-z]{5,}", PROMPT.lower()))
    for _, envelope, _ in messages:
        proposal = envelope["payload"]["proposal"]
        assert words & set(re.findall(r"[a-z]{5,}", proposal.lower()))
        assert not any(PROMPT[start : start + 32].lower() in proposal.lower() for start in range(len(PROMPT) - 31))


async def test_an_extraction_has_one_answer_with_tasks(broker: NatsServer) -> None:
    """The payload is that of the specification, and the tasks refer to deliberations that the prompt quotes."""
    async with simulation(broker) as (ray, answers), RayExecutorClient(ray.url) as client:
        await client.execute(extraction())
        ((subject, envelope, _),) = await answers.wait(1)
    payload = envelope["payload"]
    assert subject == EXTRACTION_SUBJECT
    assert set(payload) == {
        "task_id", "story_id", "ceremony_id", "tasks", "model", "timestamp", "duration_ms", "validated_at"
    }  # fmt: skip
    assert (payload["task_id"], payload["story_id"], payload["ceremony_id"]) == (extraction().task_id, "s1", "c1")
    assert 3 <= len(payload["tasks"]) <= 6
    for task in payload["tasks"]:
        assert set(task) == {"title", "description", "estimated_hours", "deliberation_indices", "priority"}
        assert set(task["deliberation_indices"]) <= {0, 1}


async def test_other_deliberations_answer_on_the_plain_subject(broker: NatsServer) -> None:
    """Any task id is accepted there, and the plan id is returned."""
    async with simulation(broker) as (ray, answers), RayExecutorClient(ray.url) as client:
        await client.execute(review(task_id="free", backlog_review=False, plan_id="p9", agents=review().agents[:1]))
        ((subject, envelope, _),) = await answers.wait(1)
    assert subject == "agent.response.completed"
    assert envelope["payload"]["constraints"]["plan_id"] == "p9"


@pytest.mark.parametrize(
    "changes",
    [
        {"task_id": "review-c1:story-s1:role-DEV"},
        {"task_id": "ceremony-c1:role-DEV"},
        {"task_id": "ceremony-c1:story-s1"},
        {"task_id": ""},
        {"task_description": " "},
        {"agents": []},
        {"agents": [RayAgent("a", "DEV", "m"), RayAgent("a", "DEV", "m")]},
    ],
)
async def test_it_refuses_the_requests_that_the_real_executor_refuses(
    broker: NatsServer, changes: dict[str, Any]
) -> None:
    """The response is OK with `failed`, and nothing runs."""
    async with simulation(broker) as (ray, _), RayExecutorClient(ray.url) as client:
        answer = await client.execute(review(**changes))
    assert (answer.status, answer.code) == ("failed", "ray_refused")
    assert ray.book.total == 0


async def test_an_accepted_task_never_runs_twice(broker: NatsServer) -> None:
    """The same task id gets the same answer while it runs and after its end."""
    async with simulation(broker) as (ray, answers), RayExecutorClient(ray.url) as client:
        first = await client.execute(review())
        second = await client.execute(review())
        await answers.wait(3)
        third = await client.execute(review())
        await asyncio.sleep(0.2)
        assert len(answers.messages) == 3
    assert first.deliberation_id == second.deliberation_id == third.deliberation_id
    assert ray.book.total == 1


async def test_the_rates_follow_the_knobs_and_a_seed_repeats_them(broker: NatsServer) -> None:
    """Of 600 answers the configured shares fail, stay silent or come twice, and a second run is equal."""
    knobs = Knobs(0.01, 0.01, failure_rate=0.2, rejection_rate=0.1, duplicate_rate=0.3, silence_rate=0.1, seed=7)
    outcomes = []
    for _ in range(2):
        async with simulation(broker, knobs) as (ray, answers), RayExecutorClient(ray.url) as client:
            tasks = [client.execute(review(n)) for n in range(200)]
            refused = sum(answer.status == "failed" for answer in await asyncio.gather(*tasks))
            async with asyncio.timeout(15):
                while ray.book.active:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)  # second copies come after the end of a job
            bodies = Counter((e["payload"]["task_id"], e["payload"]["agent_id"], s) for s, e, _ in answers.messages)
            outcomes.append((refused, bodies))
    (refused, bodies), again = outcomes
    assert (refused, bodies) == again
    asked = 3 * (200 - refused)
    assert 8 <= refused <= 35
    assert 0.84 <= len(bodies) / asked <= 0.96
    assert 0.13 <= sum(subject == FAILED_SUBJECT for _, _, subject in bodies) / asked <= 0.25
    assert 0.2 <= sum(number == 2 for number in bodies.values()) / len(bodies) <= 0.4
    assert max(bodies.values()) == 2


async def test_a_second_copy_is_the_same_message(broker: NatsServer) -> None:
    """It is equal byte by byte, as a redelivery is."""
    async with (
        simulation(broker, Knobs(0.01, 0, duplicate_rate=1)) as (ray, answers),
        RayExecutorClient(ray.url) as client,
    ):
        await client.execute(review(count=1))
        first, second = await answers.wait(2)
    assert first == second


async def test_failures_carry_their_reason_and_the_metadata_to_route_by(broker: NatsServer) -> None:
    """Every agent, also of an extraction, sends `agent.response.failed`."""
    async with (
        simulation(broker, Knobs(0.01, 0, failure_rate=1)) as (ray, answers),
        RayExecutorClient(ray.url) as client,
    ):
        await client.execute(review(count=1))
        await client.execute(extraction())
        messages = await answers.wait(2)
    assert {subject for subject, _, _ in messages} == {FAILED_SUBJECT}
    for _, envelope, _ in messages:
        payload = envelope["payload"]
        assert payload["status"] == "failed"
        assert payload["error"]
        assert payload["error_type"]
        assert payload["constraints"]["metadata"]["task_id"] == payload["task_id"]


async def test_held_back_answers_are_overtaken(broker: NatsServer) -> None:
    """Without the knob, answers come in the order of the tasks; with it, they do not."""
    orders = []
    for rate in (0.0, 0.5):
        async with (
            simulation(broker, Knobs(0.03, 0, reorder_rate=rate)) as (ray, answers),
            RayExecutorClient(ray.url) as client,
        ):
            for number in range(40):
                await client.execute(review(number, count=1))
            orders.append([e["payload"]["task_id"] for _, e, _ in await answers.wait(40)])
    in_order = [review(number).task_id for number in range(40)]
    assert orders[0] == in_order
    assert orders[1] != in_order
    assert sorted(orders[1]) == sorted(in_order)


async def test_it_reports_deliberations_jobs_and_counts(broker: NatsServer) -> None:
    """GetDeliberationStatus, GetActiveJobs and GetStatus follow a task from running to its end."""
    async with simulation(broker, Knobs(0.3, 0)) as (ray, answers), grpc.aio.insecure_channel(ray.url) as channel:
        stub = RayExecutorServiceStub(channel)
        async with RayExecutorClient(ray.url) as client:
            await client.probe()
            answer = await client.execute(review())
        asked = pb.GetDeliberationStatusRequest(deliberation_id=answer.deliberation_id)
        assert (await stub.GetDeliberationStatus(asked)).status == "running"
        (job,) = (await stub.GetActiveJobs(pb.GetActiveJobsRequest())).jobs
        assert (job.task_id, job.role, job.status) == (review().task_id, "ARCHITECT", "RUNNING")
        messages = await answers.wait(3)
        async with asyncio.timeout(5):
            while ray.book.active:
                await asyncio.sleep(0.01)
        status = await stub.GetDeliberationStatus(asked)
        proposals = {e["payload"]["agent_id"]: e["payload"]["proposal"] for _, e, _ in messages}
        assert status.status == "completed"
        assert proposals[status.result.agent_id] == status.result.proposal
        unknown = await stub.GetDeliberationStatus(pb.GetDeliberationStatusRequest(deliberation_id="none"))
        assert unknown.status == "not_found"
        stats = (await stub.GetStatus(pb.GetStatusRequest(include_stats=True))).stats
        assert (stats.total, stats.active, stats.completed, stats.failed) == (1, 0, 1, 0)
        assert 250 <= stats.average_execution_time_ms < 5_000
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "fleet.ray_executor.v1.RayExecutorService"):
            told = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert told.status == health_pb2.HealthCheckResponse.SERVING


async def test_silence_ends_as_a_failed_deliberation(broker: NatsServer) -> None:
    """Nothing comes on NATS, and the executor reports the failure."""
    async with (
        simulation(broker, Knobs(0.01, 0, silence_rate=1)) as (ray, answers),
        grpc.aio.insecure_channel(ray.url) as channel,
    ):
        async with RayExecutorClient(ray.url) as client:
            answer = await client.execute(review())
        async with asyncio.timeout(5):
            while ray.book.active:
                await asyncio.sleep(0.01)
        stub = RayExecutorServiceStub(channel)
        status = await stub.GetDeliberationStatus(
            pb.GetDeliberationStatusRequest(deliberation_id=answer.deliberation_id)
        )
        assert (status.status, status.error_message) == ("failed", "0 failed and 3 gave no answer")
        assert answers.messages == []


async def test_memory_is_bounded(broker: NatsServer) -> None:
    """It runs a limited number of jobs (the next is refused for now), and keeps a limited number of ended ones."""
    async with (
        simulation(broker, Knobs(1.5, 0), running_jobs=5, kept_jobs=3) as (ray, answers),
        RayExecutorClient(ray.url) as client,
    ):
        for number in range(5):
            await client.execute(review(number, count=1))
        with pytest.raises(Unreachable, match="RESOURCE_EXHAUSTED"):
            await client.execute(review(6))
        await answers.wait(5)
        async with asyncio.timeout(5):
            while ray.book.active:
                await asyncio.sleep(0.01)
        assert [ray.book.find(review(number).task_id) is not None for number in range(5)].count(True) == 3


class Large:
    """A letter so large that a few of them fill the buffer that nats-py keeps while its server is away."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.headers = None

    def compose(self) -> tuple[str, bytes]:
        return "agent.response.completed", b"x" * 900_000

    def delivered(self) -> None:
        self.done.set()


async def test_more_answers_than_the_client_can_buffer_wait_for_nats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each publish that nats-py's full buffer refuses would use up one of its pending publishes for ever."""
    monkeypatch.setattr(outbox_module, "ACK_SECONDS", 0.5)
    server = NatsServer(tmp_path / "nats")
    await asyncio.to_thread(server.start)
    clock = HostClock()
    client = await connect(server.url, clock, name="outbox")
    try:
        outbox = Outbox(client, clock, in_flight=4)
        await outbox.start()
        await asyncio.to_thread(server.kill)
        async with asyncio.timeout(10):
            while client.is_connected:
                await asyncio.sleep(0.01)
        letters = [Large() for _ in range(3)]
        for letter in letters:
            outbox.put(clock.monotonic(), letter)
        await asyncio.sleep(5)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            for letter in letters:
                await letter.done.wait()
        await outbox.stop()
    finally:
        await client.close()
        await asyncio.to_thread(server.kill)


async def test_answers_survive_a_nats_that_is_killed(tmp_path: Path) -> None:
    """Answers that are due while NATS is down reach the stream when it is back."""
    server = NatsServer(tmp_path)
    await asyncio.to_thread(server.start)
    try:
        clock, address = HostClock(), f"127.0.0.1:{free_port()}"
        ray = RaySimulation(grpc_address=address, nats_url=server.url, clock=clock, knobs=Knobs(0.5, 0.4))
        async with ray, RayExecutorClient(ray.url) as client:
            for number in range(50):
                await client.execute(review(number))
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(1)
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(25):
                while ray.book.active:
                    await asyncio.sleep(0.05)
            reader = await nats.connect(server.url)
            subscription = await reader.jetstream().pull_subscribe(
                "agent.response.>", "checker", stream="AGENT_RESPONSES"
            )
            found = {(p["task_id"], p["agent_id"]) for p in await drain(subscription)}
            await reader.close()
        assert len(found) == 150
    finally:
        await asyncio.to_thread(server.kill)


async def drain(subscription: Any) -> list[dict[str, Any]]:
    """All payloads that are left for a durable consumer."""
    payloads = []
    while (await subscription.consumer_info()).num_pending:
        for message in await subscription.fetch(200, timeout=5):
            payloads.append(json.loads(message.data)["payload"])
            await message.ack()
    return payloads


@pytest.mark.uncounted
async def test_thousands_of_answers_per_second(broker: NatsServer) -> None:
    """JetStream acknowledges 6,000 answers that are due at once within a few seconds."""
    async with simulation(broker, Knobs(1.5, 0)) as (ray, answers), RayExecutorClient(ray.url) as client:
        await asyncio.gather(*(client.execute(review(number, count=20)) for number in range(300)))
        started = time.monotonic()
        await answers.wait(6_000, seconds=30)
        async with asyncio.timeout(10):
            while ray.book.active:
                await asyncio.sleep(0.01)
        assert time.monotonic() - started < 15


async def test_a_failed_start_has_a_stable_code(broker: NatsServer) -> None:
    """The address is in use; nothing is left running."""
    async with simulation(broker) as (ray, _):
        second = RaySimulation(grpc_address=ray.url, nats_url=broker.url, clock=HostClock())
        with pytest.raises(SimulationError) as raised:
            await second.start()
    assert raised.value.code == "grpc_address_unusable"


async def test_a_call_can_hang_although_its_task_is_accepted(broker: NatsServer) -> None:
    """The caller's deadline ends the call. The answers still come, and a second call finds the task."""
    async with simulation(broker, Knobs(0.01, 0, hang_rate=1)) as (ray, answers):
        async with RayExecutorClient(ray.url, call_timeout_seconds=0.5) as client:
            with pytest.raises(Unreachable):
                await client.execute(review())
            assert (await client.execute(review())).status == "submitted"
        assert len(await answers.wait(3)) == 3
        assert ray.book.total == 1


async def test_late_answers_come_after_all_others(broker: NatsServer) -> None:
    """Each comes once, later by the configured time."""
    knobs = Knobs(0.01, 0, late_rate=0.3, late_seconds=1.5, duplicate_rate=1)
    async with simulation(broker, knobs) as (ray, answers):
        async with RayExecutorClient(ray.url) as client:
            for number in range(10):
                await client.execute(review(number))
        async with asyncio.timeout(15):
            while ray.book.active:
                await asyncio.sleep(0.02)
        took = [envelope["payload"]["duration_ms"] for _, envelope, _ in answers.messages]
    late = [ms for ms in took if ms >= 1500]
    assert 0 < len(late) < 30
    assert len(took) == len(late) + 2 * (30 - len(late))


async def test_oversize_proposals_are_larger_than_a_row(broker: NatsServer) -> None:
    """NATS still accepts them."""
    async with simulation(broker, Knobs(0.01, 0, oversize_rate=1)) as (ray, answers):
        async with RayExecutorClient(ray.url) as client:
            await client.execute(review())
        sizes = [len(envelope["payload"]["proposal"]) for _, envelope, _ in await answers.wait(3)]
    assert all(256 * 1024 < size < 1_000_000 for size in sizes)


@pytest.mark.parametrize(
    "wrong", [{"failure_rate": 1.5}, {"silence_rate": -0.1}, {"latency": -1}, {"jitter": float("nan")}]
)
def test_a_knob_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    """The message names the knob and its range."""
    with pytest.raises(KnobError, match=next(iter(wrong))):
        Knobs(**wrong)  # type: ignore[arg-type]


async def test_it_runs_as_a_process_and_ends_on_sigterm(broker: NatsServer) -> None:
    """It prints one line when ready and serves; SIGTERM ends it with 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ceremony.dev.ray_simulation", "--grpc", "127.0.0.1:0", "--nats", broker.url,
        "--latency", "0.01", "--seed", "3", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
            url = line.split("grpc ")[1].split(",")[0]
            async with RayExecutorClient(url) as client:
                assert (await client.execute(review())).status == "submitted"
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
