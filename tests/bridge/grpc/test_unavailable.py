"""An engine that cannot answer is UNAVAILABLE with a retry hint, within seconds; it never gives an old value."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

from bridge.clock import HostClock, new_id
from bridge.dead_letters import DeadLetters
from bridge.definitions import DefinitionFolder
from bridge.grpc.refusals import refusal_of
from bridge.grpc.server import GrpcServer
from bridge.grpc.servicer import Servicer
from bridge.nats.connection import NatsConnection
from bridge.nats.responses import AgentResponses
from ports.log import LogUnavailable
from steps.registry import all_kinds
from steps.secrets.redactor import TextRedactor
from streams.api import Overloaded, Unavailable
from streams.engine import Engine
from streams.log_clock import LogClock
from streams.metrics import process_metrics
from streams.transport.sqlite.log import SqliteLog
from tests.bridge.grpc.world import Refusal, refused
from tests.bridge.health import SaidHealth
from tests.e2e.world import NO_RETRIES, SPECS, World, until
from tests.services import KafkaServer, running

# Deadline of an answer; the engine waits 5 s for an acknowledgement of the log.
ANSWER_SECONDS = 7.0


def start_request() -> pb.StartPlanningCeremonyRequest:
    return pb.StartPlanningCeremonyRequest(
        ceremony_id=f"c-{uuid4().hex[:8]}", story_id="S1", definition_name="approval", requested_by="anna"
    )


def retry_hint(seen: Refusal) -> int:
    return int(seen.trailing["retry-after-ms"])


@contextlib.asynccontextmanager
async def server_without_tables(folder: Path) -> AsyncIterator[Any]:
    """The real server on the real engine, before any partition is recovered."""
    clock, kinds = HostClock(), all_kinds()
    log = SqliteLog(folder / "log.db", clock)
    await log.start()
    redactor = TextRedactor()
    engine = Engine(
        log=log,
        unserved=dict,
        clock=clock,
        log_clock=LogClock(clock),
        kinds=kinds,
        prefix="t",
        partitions=3,
        metrics=process_metrics(),
        redactor=redactor,
    )
    nats_in = AgentResponses(log, NatsConnection("nats://127.0.0.1:1", clock), clock, prefix="t", partitions=3)
    letters = DeadLetters(log, clock, prefix="t", partitions=3, read_message=nats_in.read_message)
    servicer = Servicer(
        engine.commands,
        engine.reads,
        DefinitionFolder(SPECS, kinds, clock),
        letters,
        SaidHealth(),
        new_id,
        engine.turns,
        redactor,
    )
    server = GrpcServer(servicer, "127.0.0.1:0", clock, engine.turns, redactor)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=NO_RETRIES) as channel:
            yield PlanningCeremonyProcessorStub(channel)
    finally:
        await server.stop(0)
        await log.stop()


async def watched(stub: Any, request: Any) -> None:
    async for _ in stub.WatchPlanningCeremony(request):
        raise AssertionError("an answer without tables")


CALLS: list[Callable[[Any], Awaitable[Any]]] = [
    lambda stub: stub.StartPlanningCeremony(start_request()),
    lambda stub: stub.GetPlanningCeremonyInstance(pb.GetPlanningCeremonyInstanceRequest(instance_id="c:s")),
    lambda stub: stub.ListPlanningCeremonyInstances(pb.ListPlanningCeremonyInstancesRequest()),
    lambda stub: stub.DecideGate(
        pb.DecideGateRequest(instance_id="c:s", step_id="ask", approved=True, actor="a", role="R")
    ),
    lambda stub: stub.TriggerTransition(pb.TriggerTransitionRequest(instance_id="c:s", trigger="t", actor="a")),
    lambda stub: stub.CancelCeremony(pb.CancelCeremonyRequest(instance_id="c:s", actor="a")),
    lambda stub: stub.RetryStep(pb.RetryStepRequest(instance_id="c:s", step_id="ask", actor="a")),
    lambda stub: stub.GetHistory(pb.GetHistoryRequest(instance_id="c:s")),
    lambda stub: stub.Diagnose(pb.DiagnoseRequest(instance_id="c:s")),
    lambda stub: watched(stub, pb.WatchPlanningCeremonyRequest(instance_id="c:s")),
]
NAMES = ["start", "get", "list", "decide", "trigger", "cancel", "retry", "history", "diagnose", "watch"]


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
async def test_calls_are_unavailable_until_tables_are_recovered(
    tmp_path: Path, call: Callable[[Any], Awaitable[Any]]
) -> None:
    """`unknown_instance` would be a guess, because no row was read yet."""
    # specification 14.2, 14.3
    async with server_without_tables(tmp_path) as stub:
        with refused("UNAVAILABLE", "unavailable") as seen:
            await call(stub)
        assert retry_hint(seen) > 0


OPERATED: dict[str, Any] = {"actor": "anna", "instance_id": "c:s"}
WRITES: dict[str, Any] = {
    "DecideGate": pb.DecideGateRequest(step_id="ask", approved=True, **OPERATED),
    "TriggerTransition": pb.TriggerTransitionRequest(trigger="t", **OPERATED),
    "CancelCeremony": pb.CancelCeremonyRequest(**OPERATED),
    "PauseCeremony": pb.PauseCeremonyRequest(**OPERATED),
    "ResumeCeremony": pb.ResumeCeremonyRequest(**OPERATED),
    "RetryStep": pb.RetryStepRequest(step_id="ask", **OPERATED),
    "RunStep": pb.RunStepRequest(step_id="ask", **OPERATED),
}


@pytest.mark.parametrize("method", WRITES)
async def test_every_write_that_is_unavailable_names_the_id_under_which_to_repeat_it(
    tmp_path: Path, method: str
) -> None:
    """The client's own id, or one that the server drew."""
    # specification 14.4
    async with server_without_tables(tmp_path) as stub:
        for given, named in (("mine", r"'mine'"), ("", r"'[0-9a-f]{32}'")):
            request = type(WRITES[method])()
            request.CopyFrom(WRITES[method])
            if given:
                request.request_id = given
            with refused("UNAVAILABLE", "unavailable") as seen:
                await getattr(stub, method)(request)
            assert re.search(f"ask again with request_id {named}", seen.details), seen.details


async def test_a_replay_that_is_unavailable_names_its_id(tmp_path: Path) -> None:
    # specification 14.4
    async with server_without_tables(tmp_path) as stub:
        away = mock.patch.object(SqliteLog, "ends", side_effect=LogUnavailable("c", "m"))
        with away, refused("UNAVAILABLE", "unavailable") as seen:
            await stub.ReplayDeadLetter(pb.ReplayDeadLetterRequest(origin="t", actor="anna", request_id="mine"))
    assert "request_id 'mine'" in seen.details


async def test_a_refused_call_leaves_no_garbage_for_the_collector(tmp_path: Path) -> None:
    """An outage refuses thousands of calls a second, and memory kept until the next full collection adds up."""
    async with server_without_tables(tmp_path) as stub:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.StartPlanningCeremony(start_request())
            left = sum(isinstance(one, Unavailable) for one in gc.get_objects())
        finally:
            gc.enable()
    assert left <= 1


def test_an_overloaded_engine_is_resource_exhausted_with_a_retry_hint() -> None:
    # specification 14.3, 22.6
    refusal = refusal_of(Overloaded("partition 3 has 9 records to fold, 5 are the limit", 1.5))
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "overloaded",
        1.5,
    )


@pytest.mark.uncounted
async def test_calls_are_unavailable_while_kafka_is_stopped_and_work_when_it_is_back(tmp_path: Path) -> None:
    """Refusals come within seconds while it is down; a refused call that is repeated later works."""
    # specification 14.2, 18.1
    with contextlib.ExitStack() as stack:
        kafka = stack.enter_context(running(KafkaServer(tmp_path / "kafka")))
        async with World(tmp_path, f"kafka://{kafka.bootstrap}") as world:
            instance_id = await world.start("approval", "C-before")
            kafka.kill()
            decision = pb.DecideGateRequest(
                instance_id=instance_id, step_id="ask", approved=True, actor="a", role="APPROVER", request_id="again-1"
            )
            began = time.monotonic()
            calls: list[Any] = [world.stub.StartPlanningCeremony(start_request()), world.stub.DecideGate(decision)]
            for call in calls:
                with refused("UNAVAILABLE", "unavailable") as seen:
                    await call
                assert retry_hint(seen) > 0
            assert time.monotonic() - began < ANSWER_SECONDS
            await until(lambda: not world.ok("log"), "readiness says that the log is down")
            await asyncio.to_thread(kafka.start)
            await until(lambda: world.ok("log", "tables"), "the log is back")
            await until(
                lambda: accepted(world.stub.StartPlanningCeremony(start_request())), "starts are accepted again"
            )
            await until(
                lambda: accepted(world.stub.DecideGate(decision)), "the decision is accepted when it is repeated"
            )
            answer = await world.stub.DecideGate(decision)
            assert (answer.ceremony.status, answer.ceremony.current_state) == ("COMPLETED", "APPROVED")
            assert world.worker.failure is None


async def test_a_failed_log_is_unavailable_with_a_retry_hint(tmp_path: Path) -> None:
    """The disk is full: this worker ends, and the next one answers the repeated call."""
    async with World(tmp_path, f"sqlite:///{tmp_path}/log.db") as world:
        log: Any = world.worker.app.driver.log
        pages = log.file._writer.execute("PRAGMA page_count").fetchone()[0]
        log.file._writer.execute(f"PRAGMA max_page_count={pages + 10}")
        large = start_request()
        large.inputs["note"] = "x" * 200_000
        for request in (large, start_request()):  # the call that makes it fail, and one after it
            with refused("UNAVAILABLE", "unavailable") as seen:
                await world.stub.StartPlanningCeremony(request)
            assert retry_hint(seen) > 0
        assert str(world.worker.failure).startswith("log_io")


async def accepted(call: Awaitable[Any]) -> bool:
    """Return whether the call is OK; any error must be UNAVAILABLE."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True
