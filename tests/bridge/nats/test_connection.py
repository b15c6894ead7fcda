"""The connection to NATS when its server is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog
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


async def killed_and_started_again(server: NatsServer, lines: list[Any]) -> None:
    connection = NatsConnection(server.url, HostClock())
    await connection.start()
    await connection.connected()
    await asyncio.to_thread(server.kill)
    while not any(line["event"] == "neighbour_fails" for line in lines):
        await asyncio.sleep(0.01)
    await asyncio.sleep(2.5)  # some more attempts to connect
    await asyncio.to_thread(server.launch)
    while not any(line["event"] == "neighbour_back" for line in lines):
        await asyncio.sleep(0.01)
    await connection.stop()


def test_an_outage_is_told_at_its_begin_and_at_its_end(tmp_path: Path) -> None:
    """The attempts to connect are counted, and the end of the worker is no outage."""
    # specification 30.6
    with running(NatsServer(tmp_path)) as server, structlog.testing.capture_logs() as lines:
        uvloop.run(asyncio.wait_for(killed_and_started_again(server, lines), 30))
    fails, back = [line for line in lines if line["event"].startswith("neighbour_")]
    assert (fails["neighbour"], fails["code"], fails["log_level"]) == ("nats", "nats_disconnected", "warning")
    assert back["failures"]["nats_disconnected"] == 1 and back["failures"]["nats_unreachable"] >= 2
