"""Bounds the connections of the HTTP server: their number, and the time until a request is complete.

aiohttp has no limit of its own for either: a client that sends half a request keeps its connection for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from ports.clock import Clock

# Connections at a time; probes and scrapers need a handful.
MOST_CONNECTIONS = 200
# From the connection, or from the last answer, until the next request is complete.
REQUEST_SECONDS = 10.0


class Connections:
    """The open connections of one server."""

    def __init__(
        self,
        new_protocol: Callable[[], asyncio.Protocol],
        clock: Clock,
        most: int = MOST_CONNECTIONS,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._new_protocol = new_protocol
        self._clock = clock
        self._most = most
        self._request_seconds = request_seconds
        self._deadlines: dict[asyncio.BaseTransport, asyncio.Task[None] | None] = {}
        """Of each open connection; None while a request is being answered."""

    def __len__(self) -> int:
        return len(self._deadlines)

    def new_connection(self) -> asyncio.Protocol:
        """The protocol of a connection that was accepted; above the limit one that closes it."""
        return _Bounded(self, self._new_protocol()) if len(self) < self._most else _Closing()

    def opened(self, transport: asyncio.Transport) -> None:
        self._deadlines[transport] = None
        self.wait_for_request(transport)

    def closed(self, transport: asyncio.Transport) -> None:
        if (deadline := self._deadlines.pop(transport, None)) is not None:
            deadline.cancel()

    def request_complete(self, transport: asyncio.BaseTransport | None) -> None:
        """Let the connection stay while its request is answered."""
        if transport is not None and (deadline := self._deadlines.get(transport)) is not None:
            deadline.cancel()
            self._deadlines[transport] = None

    def wait_for_request(self, transport: asyncio.BaseTransport | None) -> None:
        """End the connection unless its next request is complete in time."""
        if transport is None or transport not in self._deadlines:
            return
        late = self._end_late(cast(asyncio.Transport, transport))
        self._deadlines[transport] = self._clock.spawn(late, name="http-request-deadline")

    async def _end_late(self, transport: asyncio.Transport) -> None:
        await self._clock.sleep(self._request_seconds)
        transport.abort()


class _Closing(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


class _Bounded(asyncio.Protocol):
    """Passes all that happens on a connection to aiohttp's protocol, and reports its beginning and end."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.opened(self._transport)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._connections.closed(self._transport)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
