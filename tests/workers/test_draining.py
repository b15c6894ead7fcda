"""SIGTERM under load: a worker drains, answers what is under way, hands over, and ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bridge.grpc.callers import FORWARDED
from bridge.grpc.server import SERVICE
from tests.e2e.world import NO_RETRIES, WorkerProcess, http_get, until
from tests.services import KafkaServer
from tests.workers.fleet import Fleet, start_request, stub_at
from tests.workers.load import Load, accounted

pytestmark = [pytest.mark.timeout(110), pytest.mark.uncounted]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
DRAIN_SECONDS, STOP_SECONDS = 6, 40
UNDER_WAY = 30


async def test_a_worker_drains_and_hands_over_under_load(kafka: KafkaServer, tmp_path: Path) -> None:
    """Starts that another worker forwards are taken until its front closes: their partition is still here."""
    # specification 14.18, 18.8
    async with Fleet(tmp_path, kafka.bootstrap, partitions=4) as fleet:
        ending = await fleet.process(CEREMONY_DRAIN_SECONDS=DRAIN_SECONDS, CEREMONY_STOP_SECONDS=STOP_SECONDS)
        other = await fleet.process()
        for process in (ending, other):
            await process.ready()
        load = Load(fleet)
        async with load.running(), stub_at(ending.address) as stub, watched(ending, "") as server:
            async with watched(ending, SERVICE) as service:
                await until(lambda: len(load.started) > 20 and SERVING in server, "the load runs")
                under_way = [asyncio.create_task(outcome(stub, f"under-way-{number}")) for number in range(UNDER_WAY)]
                await asyncio.sleep(0)
                stopping = asyncio.create_task(asyncio.to_thread(ending.terminate, STOP_SECONDS))
                await until(lambda: readiness(ending), "it drains")
                refused, refusal = await first_refusal(stub)
                assert await outcome(stub, refused, (FORWARDED, "ipv4:127.0.0.1:1")) == ""
                found = await stub.GetPlanningCeremonyInstance(
                    pb.GetPlanningCeremonyInstanceRequest(instance_id=load.started[0])
                )
                assert found.success
                await until(lambda: NOT_SERVING in server and NOT_SERVING in service, "load balancers hear of it")
            assert await stopping == 0
        assert refusal.startswith("unavailable: this worker ends")
        assert set(await asyncio.gather(*under_way)) <= {"", refusal}
        assert "stopped_halfway" not in ending.last_words() and "stopped" in ending.last_words()
        other.must_live()
        assert await accounted(fleet, load.started) == {}


@contextlib.asynccontextmanager
async def watched(process: WorkerProcess, service: str) -> AsyncIterator[list[int]]:
    """Watch the health of a service; yields the list to which each status is added."""
    seen: list[int] = []

    async def watch() -> None:
        async with grpc.aio.insecure_channel(process.address, options=NO_RETRIES) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):  # the worker has ended
                watching = stub.Watch(health_pb2.HealthCheckRequest(service=service))
                while (answer := await watching.read()) is not grpc.aio.EOF:
                    seen.append(answer.status)

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def readiness(process: WorkerProcess) -> bool:
    """Return whether `/readyz` says that the worker drains, and that it has started all the same."""
    address = f"http://127.0.0.1:{process.http_port}"
    status, body = await asyncio.to_thread(http_get, f"{address}/readyz")
    if (status, json.loads(body)["status"]) != (503, "draining"):
        return False
    started, _ = await asyncio.to_thread(http_get, f"{address}/startupz")
    alive, _ = await asyncio.to_thread(http_get, f"{address}/livez")
    return (started, alive) == (200, 200)


async def first_refusal(stub: Any) -> tuple[str, str]:
    """Start ceremonies until one is refused; those of the other worker's partitions are passed on to it."""
    for number in itertools.count():
        if refusal := await outcome(stub, f"late-{number}"):
            return f"late-{number}", refusal
    raise AssertionError


async def outcome(stub: Any, ceremony_id: str, *metadata: tuple[str, str]) -> str:
    """Start a ceremony; return the refusal with its hint, or nothing."""
    call = stub.StartPlanningCeremony(start_request(ceremony_id, "merge_chain"), timeout=10, metadata=metadata)
    if await call.code() is grpc.StatusCode.OK:
        return ""
    assert await call.code() is grpc.StatusCode.UNAVAILABLE, await call.details()
    assert int(dict(await call.trailing_metadata())["retry-after-ms"]) > 0
    return str(await call.details())
