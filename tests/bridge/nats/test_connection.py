"""The connection to NATS when its server is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from bridge.clock import HostClock
from bridge.nats.connection import NatsConnection
from tests.services import NatsServer, running

pytestmark = pytest.mark.timeout(60)


async def stopped_without_its_server(server: NatsServer) -> None:
    connection = NatsConnection(server.url, HostClock())
    await connection.start()
    client = await connection.connected()
    await asyncio.to_thread(server.kill)
    while connection.is_connected:
        await asyncio.sleep(0.01)
    await client.publish("ceremony.x", b"kept until the server is back")
    await connection.stop()
    assert connection.state == "closed"


def test_a_connection_closes_when_its_socket_closed_with_unsent_bytes(tmp_path: Path) -> None:
    """This runs on the program's event loop, where the demo once ended with an internal error instead of its report."""
    with running(NatsServer(tmp_path)) as server:
        uvloop.run(asyncio.wait_for(stopped_without_its_server(server), 20))
