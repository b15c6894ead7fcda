"""The one connection to NATS that all parts of a process share: connects, comes back by itself, says how it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext

from bridge.nats.client import FencedClient
from ports.clock import Clock

RECONNECT_SECONDS = 1
CONNECT_TIMEOUT_SECONDS = 2
PING_SECONDS = 5
"""A server that answers no ping for two such intervals counts as gone: a frozen one keeps its sockets open."""
PENDING_BYTES = 8 * 1024 * 1024
API_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger(__name__)


class NatsConnection:
    """Connects in the background and for ever; whoever needs the server waits for `connected()`."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        name: str = "ceremony-engine",
        new_client: Callable[[], FencedClient] | None = None,
    ) -> None:
        """`url`: one server, or several with commas between. `new_client`: one for each time the last was closed."""
        self._urls = [part.strip() for part in url.split(",") if part.strip()]
        self._clock = clock
        self._name = name
        self._new_client = new_client or partial(FencedClient, self._may_write)
        self._held: set[Callable[[], bool]] = set()
        """What must hold when the client's buffer is written next."""
        self._up = asyncio.Event()
        self._closed = asyncio.Event()
        self._client: FencedClient | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._state = "connecting"
        self.generation = 0
        """Goes up with each connect: acknowledgements of what an earlier one sent never come."""

    @property
    def state(self) -> str:
        """For readiness: `ok`, or what is wrong."""
        return "ok" if self._up.is_set() else self._state

    @property
    def is_connected(self) -> bool:
        return self._up.is_set()

    async def start(self) -> None:
        """Begin to connect; returns at once, whether the server is there or not."""
        self._dialling = self._clock.spawn(self._dial(), name="nats-connect")

    async def stop(self) -> None:
        """Close; what was published and not acknowledged is published again by the next run."""
        self._down("closed")
        if self._dialling is not None and not self._dialling.done():
            self._dialling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dialling
        if self._client is not None and not self._client.is_closed:
            await _close(self._client)

    async def connected(self) -> FencedClient:
        """The client, as soon as it has a server."""
        while True:
            await self._up.wait()
            if self._client is not None:
                return self._client

    async def jetstream(self) -> JetStreamContext:
        """JetStream's own interface on this connection, as soon as there is a server."""
        return (await self.connected()).jetstream(timeout=API_TIMEOUT_SECONDS)

    def only_while(self, holds: Callable[[], bool]) -> None:
        """What is published from here to the next write is written only if this holds then; else all is dropped.

        To be called in the same step as `publish`, before it.
        """
        self._held.add(holds)

    def _may_write(self) -> bool:
        held, self._held = self._held, set()
        return all(holds() for holds in held)

    async def _dial(self) -> None:
        # nats-py tries for ever by itself, at the start and after each loss. But it closes for good when the server has
        # said an error, as for credentials that were changed or a protocol line too long: then a new client begins.
        while True:
            self._closed.clear()
            self._client = self._new_client()
            try:
                await self._connect(self._client)
                await self._on_connected()
                await self._closed.wait()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                await self._on_error(error)
                await _close(self._client)
            await self._clock.sleep(RECONNECT_SECONDS)

    async def _connect(self, client: Client) -> None:
        await client.connect(
            servers=self._urls,
            name=self._name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_SECONDS,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES,
            skip_subject_validation=True,  # nats_publish.refusal has looked at every subject
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_connected,
            closed_cb=self._on_closed,
        )

    async def _on_connected(self) -> None:
        log.info("nats_connected")
        self.generation += 1
        self._up.set()

    async def _on_disconnected(self) -> None:
        if self._up.is_set():
            log.warning("nats_disconnected")
        self._down("disconnected")

    async def _on_closed(self) -> None:
        if self._up.is_set():
            log.warning("nats_closed", hint="the server ended the connection with an error; its log says which")
        self._down("closed by the server")
        self._closed.set()

    async def _on_error(self, error: Exception) -> None:
        # Without a callback nats-py prints a traceback for each failed attempt to connect.
        reason = "authorization refused" if "authorization" in str(error).lower() else type(error).__name__
        if not self._up.is_set():
            self._state = f"unreachable: {reason}"
        log.debug("nats_error", reason=reason)

    def _down(self, state: str) -> None:
        self._up.clear()
        self._state = state


async def _close(client: Client) -> None:
    """Also where the socket has gone with something still to be sent, which uvloop calls a RuntimeError."""
    with contextlib.suppress(nats.errors.Error, OSError, RuntimeError):
        await client.close()


def swallowed_cancel() -> bool:
    """Whether this task was cancelled and a library went on: nats-py's `fetch` does on Python 3.11 (`wait_for`)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
