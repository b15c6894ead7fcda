"""The HTTP server bounds its connections and the time in which a request arrives; others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from bridge.clock import HostClock
from bridge.http.server import HttpServer
from steps.secrets.redactor import TextRedactor
from tests.bridge.health import SaidHealth

pytestmark = pytest.mark.asyncio
HALF, WHOLE = b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def server(most: int, seconds: float) -> AsyncIterator[HttpServer]:
    made = HttpServer(
        "127.0.0.1:0",
        SaidHealth(),
        CollectorRegistry(),
        HostClock(),
        redactor=TextRedactor(),
        most_connections=most,
        request_seconds=seconds,
    )
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def sent(made: HttpServer, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(data)
    return reader, writer


async def ends(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of a connection that got no answer."""
    with contextlib.suppress(ConnectionError):
        return await reader.read() == b""
    return True


async def answered(reader: asyncio.StreamReader) -> bool:
    return (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")


async def test_half_requests_lose_their_connection_after_the_time_for_a_request() -> None:
    # specification 22.12
    async with server(100, 0.2) as made:
        halves = [await sent(made, HALF) for _ in range(20)]
        assert all(await asyncio.gather(*(ends(reader) for reader, _ in halves)))
        assert len(made.connections) == 0
        for _, writer in halves:
            writer.close()


async def test_connections_above_the_limit_are_closed_and_the_next_one_is_served_after_that() -> None:
    # specification 22.12
    async with server(5, 0.3) as made:
        silent = [await sent(made, b"") for _ in range(5)]
        too_many = [await sent(made, WHOLE) for _ in range(10)]
        assert all(await asyncio.gather(*(ends(reader) for reader, _ in too_many)))
        assert len(made.connections) == 5
        assert all(await asyncio.gather(*(ends(reader) for reader, _ in silent)))
        reader, writer = await sent(made, WHOLE)
        assert await answered(reader)
        for _, one in (*silent, *too_many, (reader, writer)):
            one.close()


async def test_a_connection_serves_one_request_after_the_other_in_time() -> None:
    async with server(5, 0.3) as made:
        reader, writer = await sent(made, WHOLE)
        for _ in range(4):
            assert await answered(reader)
            await asyncio.sleep(0.1)
            writer.write(WHOLE)
        assert await answered(reader)
        assert await ends(reader)
        writer.close()
