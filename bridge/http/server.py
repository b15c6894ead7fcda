"""Health and metrics over HTTP: `/livez`, `/startupz`, `/readyz` with each neighbour's health, and `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from bridge.http.connections import MOST_CONNECTIONS, REQUEST_SECONDS, Connections
from ports.clock import Clock
from ports.health import NeighbourHealth, WorkerHealth
from ports.redaction import Redactor
from streams.envelope import iso

# Seconds for which an answered connection waits for its next request; a scraper connects anew.
KEEP_ALIVE_SECONDS = REQUEST_SECONDS
# Seconds for which a stop waits for answers under way.
STOP_SECONDS = 1.0

# Last line of a text in the format of OpenMetrics.
OPENMETRICS_END = b"# EOF\n"


class HttpServer:
    """`/livez` asks nothing: no neighbour that is away may have a worker killed."""

    def __init__(
        self,
        address: str,
        health: WorkerHealth,
        registry: CollectorRegistry,
        clock: Clock,
        *,
        redactor: Redactor,
        most_connections: int = MOST_CONNECTIONS,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._host, _, port = address.rpartition(":")
        self._requested_port = int(port)
        self.port = 0
        self._health = health
        self._registry = registry
        self._redactor = redactor
        self._clock = clock
        app = web.Application(middlewares=[self._bounded])
        app.router.add_get("/livez", self._live)
        app.router.add_get("/startupz", self._startup)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS, shutdown_timeout=STOP_SECONDS
        )
        self.connections = Connections(self._new_protocol, clock, most_connections, request_seconds)
        self._listening: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError when the address cannot be bound."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        # Not a site of aiohttp: that one accepts connections without a limit.
        try:
            self._listening = await loop.create_server(
                self.connections.new_connection, self._host.strip("[]"), self._requested_port
            )
        except OSError as error:
            text = f"cannot listen on {self._host}:{self._requested_port} for HTTP: {error.strerror or error}"
            raise OSError(text) from None
        self.port = self._listening.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()

    def _new_protocol(self) -> asyncio.Protocol:
        if self._runner.server is None:
            raise RuntimeError("a connection before the start")
        protocol: asyncio.Protocol = self._runner.server()
        return protocol

    @web.middleware
    async def _bounded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Bound the time in which a request arrives, and not the time in which it is answered."""
        transport = request.transport
        self.connections.request_complete(transport)
        try:
            return await handler(request)
        finally:
            self.connections.wait_for_request(transport)

    def ready(self) -> bool:
        return self._health.is_ready

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _startup(self, request: web.Request) -> web.Response:
        started = self._health.is_started
        return self._answer(started, "started" if started else "starting", self._health.needed_to_start)

    async def _ready(self, request: web.Request) -> web.Response:
        health = self._health
        return self._answer(health.is_ready, health.status, health.required, list(health.warnings()))

    def _answer(
        self,
        well: bool,  # noqa: FBT001
        status: str,
        required: Sequence[str],
        warnings: Sequence[str] = (),
    ) -> web.Response:
        neighbours = {name: _shown(health) for name, health in self._health.neighbours().items()}
        body = {"status": status, "required": list(required), "neighbours": neighbours}
        if warnings:
            body["warnings"] = warnings
        return web.json_response(self._redactor.redact(body).value, status=200 if well else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = b"".join([piece async for piece in self._encoded(encode)])
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _encoded(self, encode: Callable[[CollectorRegistry], bytes]) -> AsyncIterator[bytes]:
        """Encode one metric after the other, redacted; all at once, 200 definitions would stop the loop for 0.1 s."""
        end = b""
        for metric in self._registry.collect():
            alone = CollectorRegistry()
            alone.register(_Collected(metric))
            piece = encode(alone)
            if piece.endswith(OPENMETRICS_END):
                piece, end = piece.removesuffix(OPENMETRICS_END), OPENMETRICS_END
            yield self._redactor.data(piece)
            await self._clock.sleep(0)
        yield end


class _Collected:
    """A collector of one metric that was collected already."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Sequence[Metric]:
        return (self._metric,)


def _shown(health: NeighbourHealth) -> dict[str, Any]:
    shown = health._asdict() | {"since": iso(health.since)}
    if (error := health.last_error) is not None:
        shown["last_error"] = error._asdict() | {"at": iso(error.at)}
    return shown
