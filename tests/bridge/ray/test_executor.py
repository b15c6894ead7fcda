"""The Ray executor's client against a real gRPC server with configurable answers."""

# ruff: noqa: N802, ARG001 - gRPC defines the names of RPCs and the arguments of handlers

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio
import pytest
import structlog
from fleet.ray_executor.v1 import ray_executor_pb2 as pb
from fleet.ray_executor.v1.ray_executor_pb2_grpc import (
    RayExecutorServiceServicer,
    RayExecutorServiceStub,
    add_RayExecutorServiceServicer_to_server,
)

from bridge.ray.executor import RayExecutorClient
from ports.errors import Unreachable
from ports.ray import RayAgent, RayTask
from streams.outages import CALLS_SETTLE_SECONDS, NeighbourOutage
from tests.services import free_port
from tests.streams.fakes import HandClock

pytestmark = pytest.mark.timeout(30)
SECRET = "Traceback: password=hunter2"

Reply = Callable[[Any, Any], Awaitable[pb.ExecuteDeliberationResponse]]


class Executor(RayExecutorServiceServicer):
    """Answers every Execute with `reply`, and records the requests."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.calls: list[tuple[str, Any, dict[str, Any], float]] = []

    async def ExecuteDeliberation(self, request: Any, context: Any) -> pb.ExecuteDeliberationResponse:
        return await self._answer("generic", request, context)

    async def ExecuteBacklogReviewDeliberation(self, request: Any, context: Any) -> pb.ExecuteDeliberationResponse:
        return await self._answer("backlog_review", request, context)

    async def GetDeliberationStatus(self, request: Any, context: Any) -> pb.GetDeliberationStatusResponse:
        return await self._not_served(context)

    async def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        return await self._not_served(context)

    async def GetActiveJobs(self, request: Any, context: Any) -> pb.GetActiveJobsResponse:
        return await self._not_served(context)

    async def _not_served(self, context: Any) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in this test")
        raise AssertionError("abort raises")

    async def _answer(self, kind: str, request: Any, context: Any) -> pb.ExecuteDeliberationResponse:
        self.calls.append((kind, request, dict(context.invocation_metadata()), context.time_remaining()))
        return await self.reply(request, context)


@asynccontextmanager
async def serving(executor: Executor, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    add_RayExecutorServiceServicer_to_server(executor, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def says(status: str, message: str = "") -> Reply:
    async def reply(request: Any, context: Any) -> pb.ExecuteDeliberationResponse:
        return pb.ExecuteDeliberationResponse(
            task_id=request.task_id, deliberation_id="d-1", status=status, message=message
        )

    return reply


def aborts(code: grpc.StatusCode) -> Reply:
    async def reply(request: Any, context: Any) -> pb.ExecuteDeliberationResponse:
        await context.abort(code, SECRET)
        raise AssertionError("abort raises")

    return reply


def task(**changes: Any) -> RayTask:
    values: dict[str, Any] = {
        "task_id": "ceremony-c1:story-s1:role-DEV:step-review:attempt-1",
        "task_description": "Review the story.",
        "role": "DEV",
        "agents": (RayAgent("agent-dev-001", "DEV", "llama", "be brief"), RayAgent("agent-dev-002", "DEV", "llama")),
        "story_id": "s1",
        "backlog_review": True,
        "plan_id": "p1",
        "timeout_seconds": 120,
        "max_retries": 2,
        "metadata": {"task_type": "BACKLOG_REVIEW_ROLE", "attempt": "1"},
        "vllm_url": "http://vllm:8000",
        "vllm_model": "llama",
        "correlation_id": "corr-7",
    }
    return RayTask(**(values | changes))


async def test_a_backlog_review_is_sent_with_every_field() -> None:
    """The plan id is in the metadata, the correlation id in the gRPC metadata, and the call has a deadline."""
    # specification 15.1, 15.3, 15.4
    executor = Executor(says("submitted"))
    async with serving(executor) as url, RayExecutorClient(url, call_timeout_seconds=7) as client:
        answer = await client.execute(task())
    assert (answer.status, answer.deliberation_id) == ("submitted", "d-1")
    ((kind, request, metadata, remaining),) = executor.calls
    assert kind == "backlog_review"
    assert request == pb.ExecuteBacklogReviewDeliberationRequest(
        task_id="ceremony-c1:story-s1:role-DEV:step-review:attempt-1",
        task_description="Review the story.",
        role="DEV",
        constraints=pb.BacklogReviewTaskConstraints(
            story_id="s1",
            timeout_seconds=120,
            max_retries=2,
            metadata={"task_type": "BACKLOG_REVIEW_ROLE", "attempt": "1", "plan_id": "p1"},
        ),
        agents=[
            pb.Agent(id="agent-dev-001", role="DEV", model="llama", prompt_template="be brief"),
            pb.Agent(id="agent-dev-002", role="DEV", model="llama"),
        ],
        vllm_url="http://vllm:8000",
        vllm_model="llama",
    )
    assert metadata["x-correlation-id"] == "corr-7"
    assert 0 < remaining <= 7


async def test_other_tasks_use_the_generic_call_with_their_plan_id() -> None:
    """Task extraction uses ExecuteDeliberation, whose constraints have a plan id."""
    # specification 15.1, 15.3
    executor = Executor(says("submitted"))
    async with serving(executor) as url, RayExecutorClient(url) as client:
        await client.execute(task(backlog_review=False, metadata={"task_type": "TASK_EXTRACTION"}))
    ((kind, request, _, _),) = executor.calls
    assert kind == "generic"
    assert request.constraints.plan_id == "p1"
    assert dict(request.constraints.metadata) == {"task_type": "TASK_EXTRACTION"}


async def test_the_answer_failed_fails_the_attempt() -> None:
    """The executor's reason is kept on one line."""
    # specification 15.5
    async with serving(Executor(says("failed", "no\ngpu"))) as url, RayExecutorClient(url) as client:
        answer = await client.execute(task())
    assert (answer.status, answer.code) == ("failed", "ray_refused")
    assert answer.message.endswith("refused the task: no gpu")


async def test_an_unknown_status_fails_the_attempt() -> None:
    """Only `submitted` lets the attempt go on."""
    # specification 15.5
    async with serving(Executor(says("queued"))) as url, RayExecutorClient(url) as client:
        answer = await client.execute(task())
    assert (answer.status, answer.code) == ("failed", "ray_unknown_status")


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN])
async def test_a_grpc_error_status_fails_the_attempt_without_the_executors_text(code: grpc.StatusCode) -> None:
    """The code is stable, and the details of the executor go to the log only."""
    # specification 1.9, 15.5
    async with serving(Executor(aborts(code))) as url, RayExecutorClient(url) as client:
        answer = await client.execute(task())
    assert (answer.status, answer.code) == ("failed", f"ray_{code.name.lower()}")
    assert SECRET not in answer.message


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_no_answer_is_unreachable(code: grpc.StatusCode) -> None:
    """An undecided task may be submitted again, and uses up no attempt."""
    # specification 15.6
    async with serving(Executor(aborts(code))) as url, RayExecutorClient(url) as client:
        with pytest.raises(Unreachable) as raised:
            await client.execute(task())
    assert raised.value.neighbour == "ray_executor"
    assert SECRET not in raised.value.reason


async def test_a_call_after_its_deadline_is_unreachable() -> None:
    """A hanging executor costs no more than the deadline."""
    # specification 15.4, 15.6

    async def hang(request: Any, context: Any) -> pb.ExecuteDeliberationResponse:
        await asyncio.sleep(20)
        raise AssertionError("nobody waits so long")

    async with serving(Executor(hang)) as url, RayExecutorClient(url, call_timeout_seconds=0.2) as client:
        with pytest.raises(Unreachable, match="DEADLINE_EXCEEDED"):
            await client.execute(task())


async def test_the_channel_reconnects_to_a_restarted_executor() -> None:
    """After a restart on the same address the same client works again within seconds."""
    address = f"127.0.0.1:{free_port()}"
    async with RayExecutorClient(address) as client:
        with pytest.raises(Unreachable):
            await client.execute(task())
        with pytest.raises(Unreachable):
            await client.probe()
        async with serving(Executor(says("submitted")), address), asyncio.timeout(10):
            while True:
                try:
                    assert (await client.execute(task())).status == "submitted"
                    break
                except Unreachable:
                    await asyncio.sleep(0.05)
            await client.probe()  # this server has no GetStatus: UNIMPLEMENTED is an answer too


async def test_however_many_calls_fail_the_log_has_two_lines() -> None:
    """Calls that were refused count with those without an answer, each under its code. The probe tells of the end."""
    # specification 30.6
    clock = HandClock()
    outage = NeighbourOutage("ray_executor", clock, "steps wait", settle_seconds=CALLS_SETTLE_SECONDS)
    address = f"127.0.0.1:{free_port()}"
    with structlog.testing.capture_logs() as lines:
        async with RayExecutorClient(address, outage=outage) as client:
            for code in [grpc.StatusCode.UNAVAILABLE] * 150 + [grpc.StatusCode.INVALID_ARGUMENT] * 50:
                client._stub = Failing(code)  # type: ignore[assignment]
                with contextlib.suppress(Unreachable):
                    assert (await client.execute(task())).status == "failed"
            client._stub = RayExecutorServiceStub(client._channel)
            async with serving(Executor(says("submitted")), address), asyncio.timeout(10):
                while not lines or lines[-1]["event"] != "neighbour_back":
                    with contextlib.suppress(Unreachable):
                        await client.probe()
                    clock.seconds += 1
                    await asyncio.sleep(0.02)
    first, last = [line for line in lines if line["log_level"] != "debug"]
    assert (first["event"], first["code"]) == ("neighbour_fails", "ray_unavailable")
    assert last["failures"]["ray_unavailable"] >= 150 and last["failures"]["ray_invalid_argument"] == 50


class Failing:
    """A stub whose calls fail with a status, without a network."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no luck")

    async def ExecuteDeliberation(self, *_: Any, **__: Any) -> Any:
        raise self._error

    ExecuteBacklogReviewDeliberation = ExecuteDeliberation


async def test_a_closed_client_is_unreachable() -> None:
    """A call during the shutdown is Unreachable, not an error of grpc.aio."""
    client = RayExecutorClient("127.0.0.1:1")
    await client.close()
    with pytest.raises(Unreachable, match="closed"):
        await client.execute(task())
    with pytest.raises(Unreachable, match="closed"):
        await client.probe()


async def test_any_text_may_be_a_correlation_id() -> None:
    """Metadata holds ASCII only, so other characters are percent-encoded."""
    executor = Executor(says("submitted"))
    async with serving(executor) as url, RayExecutorClient(url) as client:
        assert (await client.execute(task(correlation_id="größe\n1"))).status == "submitted"
        assert (await client.execute(task(correlation_id=""))).status == "submitted"
    assert executor.calls[0][2]["x-correlation-id"] == "gr%C3%B6%C3%9Fe%0A1"
    assert "x-correlation-id" not in executor.calls[1][2]
