"""Health and metrics over HTTP: `/livez`, `/readyz` with each neighbour's state, `/metrics` for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# Gives the state of each neighbour: `ok`, or a text with the trouble.
States = Callable[[], Mapping[str, str]]


class HttpServer:
    """Each `/readyz` reads `states`; the worker is ready when the `required` neighbours are `ok`."""

    def __init__(self, address: str, states: States, required: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._host, _, port = address.rpartition(":")
        self._requested_port = int(port)
        self.port = 0
        self._states = states
        self._required = required
        self._registry = registry
        app = web.Application()
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Raises OSError when the address cannot be bound."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._requested_port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    def ready(self) -> bool:
        states = self._states()
        return all(states.get(name) == "ok" for name in self._required)

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, request: web.Request) -> web.Response:
        states = dict(self._states())
        ready = all(states.get(name) == "ok" for name in self._required)
        body = {"status": "ready" if ready else "not ready", "required": list(self._required), "neighbours": states}
        return web.json_response(body, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})
