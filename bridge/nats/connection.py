"""The NATS connection that all parts of a process share: connects, reconnects, and reports its state."""

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
from bridge.nats.urls import server_urls
from ports.clock import Clock
from ports.errors import Unreachable
from streams.outages import NeighbourOutage

NEIGHBOUR = "nats"
RECONNECT_SECONDS = 1
CONNECT_TIMEOUT_SECONDS = 2
# A server that answers no ping for two such intervals counts as lost; a frozen server keeps its sockets open.
PING_SECONDS = 5
PENDING_BYTES = 8 * 1024 * 1024
API_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger(__name__)


class NatsConnection:
    """Connects in the background and never gives up; `connected()` waits for the server."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        name: str = "ceremony-engine",
        stream_replicas: int = 1,
        new_client: Callable[[], FencedClient] | None = None,
    ) -> None:
        """`url` names one server, or several separated by commas. `new_client` makes a client after one was closed.

        `stream_replicas`: servers that hold a stream which the engine makes. Raises NatsUrlInvalid.
        """
        self.stream_replicas = stream_replicas
        self._urls = server_urls(url)
        self._clock = clock
        self._name = name
        self._new_client = new_client or partial(FencedClient, self._may_write)
        self._conditions: set[Callable[[], bool]] = set()
        """Conditions for the next write of the client's buffer."""
        self._up = asyncio.Event()
        self._closed = asyncio.Event()
        self._client: FencedClient | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._state = "connecting"
        self._stopping = False
        self.outage = NeighbourOutage(
            "nats", clock, "events and messages of publish steps wait in the log, results of agents in NATS"
        )
        self.generation = 0
        """Rises with each connect; acknowledgements for messages of an earlier generation never come."""

    @property
    def state(self) -> str:
        """For readiness: `ok`, or a text with the trouble."""
        return "ok" if self._up.is_set() else self._state

    @property
    def is_connected(self) -> bool:
        return self._up.is_set()

    async def start(self) -> None:
        """Begin to connect; returns at once, with or without a server."""
        self._dialling = self._clock.spawn(self._dial(), name="nats-connect")

    async def stop(self) -> None:
        """Close; the next run publishes unacknowledged messages again."""
        self._stopping = True
        self._down("closed")
        if self._dialling is not None and not self._dialling.done():
            self._dialling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dialling
        if self._client is not None and not self._client.is_closed:
            await _close(self._client)

    async def connected(self) -> FencedClient:
        """The client; waits until it is connected."""
        while True:
            await self._up.wait()
            if self._client is not None:
                return self._client

    async def jetstream(self) -> JetStreamContext:
        """nats-py's JetStream interface on this connection; waits until it is connected."""
        return (await self.connected()).jetstream(timeout=API_TIMEOUT_SECONDS)

    async def probe(self) -> None:
        """Check that the server answers a ping. Raises Unreachable."""
        client = self._client
        if client is None or not self._up.is_set():
            raise Unreachable(NEIGHBOUR, self.state)
        try:
            await client.flush()
        except (nats.errors.Error, OSError):
            raise Unreachable(NEIGHBOUR, "no answer") from None

    def only_while(self, holds: Callable[[], bool]) -> None:
        """Make the next write of the buffer depend on `holds`; if it is false then, the whole buffer is dropped.

        Call it before `publish`, without an await between them.
        """
        self._conditions.add(holds)

    def _may_write(self) -> bool:
        conditions, self._conditions = self._conditions, set()
        return all(holds() for holds in conditions)

    async def _dial(self) -> None:
        # nats-py itself never stops trying, at the start and after each loss. But it closes for good after an error of
        # the server, such as changed credentials or a protocol line too long: then a new client begins.
        while True:
            self._closed.clear()
            self._client = self._new_client()
            try:
                await self._connect(self._client)
                await self._on_connected()
                await self._closed.wait()
            except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
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
            skip_subject_validation=True,  # `publish.refusal` has checked every subject
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_connected,
            closed_cb=self._on_closed,
        )

    async def _on_connected(self) -> None:
        log.info("nats_connected")
        self.outage.answered()
        self.generation += 1
        self._up.set()

    async def _on_disconnected(self) -> None:
        if self._up.is_set():
            self.outage.failed("nats_disconnected", "the connection was lost")
        self._down("disconnected")

    async def _on_closed(self) -> None:
        if self._up.is_set():
            self.outage.failed("nats_closed", "the server ended the connection with an error; its log says which")
        self._down("closed by the server")
        self._closed.set()

    async def _on_error(self, error: Exception) -> None:
        # Without a callback nats-py prints a traceback for each failed attempt to connect.
        refused = "authorization" in str(error).lower()
        reason = "authorization refused" if refused else type(error).__name__
        if not self._up.is_set() and not self._stopping:
            self._state = f"unreachable: {reason}"
            self.outage.failed("nats_refused" if refused else "nats_unreachable", reason)
        log.debug("nats_error", reason=reason)

    def _down(self, state: str) -> None:
        self._up.clear()
        self._state = state


async def _close(client: Client) -> None:
    """Close a client. uvloop raises RuntimeError if the socket closed with unsent bytes, which is ignored too."""
    with contextlib.suppress(nats.errors.Error, OSError, RuntimeError):
        await client.close()


def swallowed_cancel() -> bool:
    """Return whether a library swallowed this task's cancel, as nats-py's `fetch` does on Python 3.11 (`wait_for`)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
