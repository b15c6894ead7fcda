"""Publish steps with a real Valkey beside the worker: the mark that a message leaves, and a Valkey that hangs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

from bridge.valkey.client import valkey_client
from tests.conftest import ValkeyAddress
from tests.e2e.world import World
from tests.services import ValkeyServer, running


async def test_a_published_message_leaves_its_place_in_valkey(
    valkey: ValkeyServer | ValkeyAddress, tmp_path: Path
) -> None:
    # specification 9.11
    settings: dict[str, Any] = {
        "VALKEY_HOST": valkey.host,
        "VALKEY_PORT": valkey.port,
        "VALKEY_PASSWORD": valkey.password,
    }
    async with (
        World(tmp_path, f"sqlite://{tmp_path}/log.db", **settings) as world,
        valkey_client(valkey.host, valkey.port, 0, lambda: valkey.password) as client,
    ):
        instance_id = await world.start("backlog_review", f"c-{uuid4().hex[:10]}")
        await world.finish(instance_id)
        published = [m for m in await world.messages() if m.headers["Nats-Msg-Id"].startswith("publish/")]
        assert published
        for message in published:
            mark = json.loads(await client.get(f"idempotency:{message.headers['Nats-Msg-Id']}") or "{}")
            assert (mark["state"], mark["sequence"]) == ("COMPLETED", message.sequence)


async def test_a_valkey_that_hangs_stops_no_publish_step(tmp_path: Path) -> None:
    # specification 9.11
    with running(ValkeyServer(tmp_path / "valkey")) as server:
        settings: dict[str, Any] = {
            "VALKEY_HOST": server.host,
            "VALKEY_PORT": server.port,
            "VALKEY_PASSWORD": server.password,
        }
        async with World(tmp_path, f"sqlite://{tmp_path}/log.db", **settings) as world:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            try:
                instance_id = await world.start("backlog_review", "c1")
                await world.finish(instance_id)
            finally:
                os.kill(server.pid, signal.SIGCONT)
