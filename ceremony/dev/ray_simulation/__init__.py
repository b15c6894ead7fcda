"""A simulated Ray executor: real gRPC in, real NATS JetStream out, invented agents between.

It stands in for a neighbour in `ceremony dev`, the demo and the tests. It may therefore use random numbers, all seeded.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import grpc.aio
import nats.errors
from fleet.ray_executor.v1 import ray_executor_pb2 as pb
from fleet.ray_executor.v1.ray_executor_pb2_grpc import add_RayExecutorServiceServicer_to_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from nats.aio.client import Client

from bridge.grpc.binding import bind
from bridge.grpc.intake import read_all_wakeups
from ceremony.dev.ray_simulation.jobs import JobBook
from ceremony.dev.ray_simulation.knobs import Knobs
from ceremony.dev.ray_simulation.outbox import Outbox, connect
from ceremony.dev.ray_simulation.service import RayExecutorService
from ceremony.errors import SimulationError
from ports.clock import Clock

__all__ = ["Knobs", "RaySimulation"]

STOP_SECONDS = 1.0
RUNNING_JOBS = 100_000
KEPT_JOBS = 10_000
SERVICE = pb.DESCRIPTOR.services_by_name["RayExecutorService"].full_name

# Two servers on one port would share its calls, and nobody would notice.
SERVER_OPTIONS = (("grpc.so_reuseport", 0),)


class RaySimulation:
    """`async with RaySimulation(...) as ray:` serves at `ray.url` until the block ends."""

    def __init__(
        self,
        *,
        grpc_address: str,
        nats_url: str,
        clock: Clock,
        knobs: Knobs | None = None,
        running_jobs: int = RUNNING_JOBS,
        kept_jobs: int = KEPT_JOBS,
    ) -> None:
        self.grpc_address = grpc_address
        """`host:port`; port 0 takes a free one."""
        self.nats_url = nats_url
        self.knobs = knobs or Knobs()
        self.book = JobBook(running_limit=running_jobs, kept_limit=kept_jobs)
        """The accepted jobs and their counts: `total`, `active`, `completed`, `failed`."""
        self.url = ""
        """Its address, `host:port`, once it has started."""
        self._clock = clock
        self._connection: Client | None = None
        self._outbox: Outbox | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Connect, make the stream AGENT_RESPONSES if it is missing, and serve. Raises SimulationError."""
        try:
            await self._start_server(await self._start_outbox())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End calls, then the connection. Answers that are not due yet are lost, as with the real executor."""
        if self._server is not None:
            await self._server.stop(STOP_SECONDS)
            self._server = None
        if self._outbox is not None:
            await self._outbox.stop()
            self._outbox = None
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _start_outbox(self) -> Outbox:
        try:
            self._connection = await connect(self.nats_url, self._clock, name="ray-simulation")
            outbox = Outbox(self._connection, self._clock)
            await outbox.start()
        except (TimeoutError, OSError, nats.errors.Error):
            remedy = "start a nats-server with JetStream first"
            raise SimulationError("nats_unreachable", f"no JetStream at {self.nats_url}", remedy=remedy) from None
        self._outbox = outbox
        return outbox

    async def _start_server(self, outbox: Outbox) -> None:
        read_all_wakeups()
        healthy = health.HealthServicer()
        for name in ("", SERVICE):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        service = RayExecutorService(self.knobs, self.book, outbox, self._clock)
        add_RayExecutorServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        try:
            port = await bind(server, self.grpc_address)
        except OSError:
            message = f"cannot listen on {self.grpc_address}"
            raise SimulationError("grpc_address_unusable", message, remedy="name a free host:port") from None
        self._server = server
        await server.start()
        self.url = f"{self.grpc_address.rpartition(':')[0]}:{port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
