"""The health service: a client that watches it and reads nothing delays nobody."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bridge.clock import HostClock
from bridge.grpc.server import SERVICE, GrpcServer
from bridge.grpc.servicer import Servicer
from steps.secrets.redactor import TextRedactor
from streams.turns import Turns
from tests.streams.fakes import HandClock

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def made(clock: Any) -> GrpcServer:
    servicer = mock.create_autospec(Servicer, instance=True)
    return GrpcServer(servicer, "127.0.0.1:0", clock, Turns(clock), TextRedactor())


async def status(server: GrpcServer, service: str) -> Any:
    context = mock.Mock(abort=mock.AsyncMock())
    return (await server.health.Check(health_pb2.HealthCheckRequest(service=service), context)).status


class StalledClient:
    """The context of a watch whose client takes nothing until `released`."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.writing = asyncio.Event()
        self.released = asyncio.Event()

    async def write(self, answer: Any) -> None:
        self.writing.set()
        await self.released.wait()
        self.written.append(answer.status)


@pytest.mark.parametrize("watched", ["", SERVICE])
async def test_a_stalled_watcher_does_not_keep_a_draining_worker_serving(watched: str) -> None:
    # specification 18.8
    clock, client = HandClock(), StalledClient()
    server = made(clock)
    await server.set_ready(ready=True)
    watch = asyncio.create_task(server.health.Watch(health_pb2.HealthCheckRequest(service=watched), client))
    await client.writing.wait()
    try:
        draining = asyncio.create_task(server.drain())
        await clock.advance(1)
        await draining
        assert [await status(server, service) for service in ("", SERVICE)] == [NOT_SERVING, NOT_SERVING]
        client.released.set()
        await clock.advance(0)
        assert client.written == [SERVING, NOT_SERVING]
    finally:
        watch.cancel()


@pytest.mark.parametrize("watched", ["", SERVICE])
async def test_a_stalled_watcher_does_not_hide_a_change_of_readiness(watched: str) -> None:
    clock, client = HandClock(), StalledClient()
    server = made(clock)
    await server.set_ready(ready=True)
    watch = asyncio.create_task(server.health.Watch(health_pb2.HealthCheckRequest(service=watched), client))
    await client.writing.wait()
    try:
        for ready, expected in ((False, NOT_SERVING), (True, SERVING)):
            changing = asyncio.create_task(server.set_ready(ready=ready))
            await clock.advance(1)
            await changing
            assert [await status(server, service) for service in ("", SERVICE)] == [expected, expected]
    finally:
        watch.cancel()


async def test_checks_and_watches_hear_of_each_change() -> None:
    server = made(HostClock())
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == NOT_SERVING
            await server.set_ready(ready=True)
            assert (await watch.read()).status == SERVING
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status == SERVING
            await server.drain()
            assert (await watch.read()).status == NOT_SERVING
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
            other = health_pb2.HealthCheckRequest(service="other")
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Check(other)
            assert error.value.code() is grpc.StatusCode.NOT_FOUND
            assert (await stub.Watch(other).read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            watch.cancel()
    finally:
        await server.stop(0)
