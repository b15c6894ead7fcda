"""Health and metrics over HTTP: `/livez`, `/readyz` with each neighbour's state, `/metrics` for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from bridge.http.connections import MOST_CONNECTIONS, REQUEST_SECONDS, Connections
from ports.clock import Clock
from ports.redaction import Redactor

# Seconds for which an answered connection waits for its next request; a scraper connects anew.
KEEP_ALIVE_SECONDS = REQUEST_SECONDS
# Seconds for which a stop waits for answers under way.
STOP_SECONDS = 1.0

# Last line of a text in the format of OpenMetrics.
OPENMETRICS_END = b"# EOF\n"

# Gives the state of each neighbour: `ok`, or a text with the trouble.
States = Callable[[], Mapping[str, str]]


class HttpServer:
    """Each `/readyz` reads `states`; the worker is ready when the `required` neighbours are `ok`."""

    def __init__(
        self,
        address: str,
        states: States,
        required: tuple[str, ...],
        registry: CollectorRegistry,
        clock: Clock,
        *,
        redactor: Redactor,
        warnings: Callable[[], Sequence[str]] = tuple,
        most_connections: int = MOST_CONNECTIONS,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._host, _, port = address.rpartition(":")
        self._requested_port = int(port)
        self.port = 0
        self._states = states
        self._required = required
        self._warnings = warnings
        self._registry = registry
        self._redactor = redactor
        self._clock = clock
        app = web.Application(middlewares=[self._bounded])
        app.router.add_get("/livez", self._live)
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
        states = self._states()
        return all(states.get(name) == "ok" for name in self._required)

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, request: web.Request) -> web.Response:
        states = dict(self._states())
        ready = all(states.get(name) == "ok" for name in self._required)
        body = {"status": "ready" if ready else "not ready", "required": list(self._required), "neighbours": states}
        if warnings := list(self._warnings()):
            body["warnings"] = warnings
        return web.json_response(self._redactor.redact(body).value, status=200 if ready else 503)

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
