"""The whole product over real sockets, under load: gRPC, Kafka, the Ray executor, NATS, Valkey and Neo4j.

Both stores go down and come back, at last with nothing in them. In the end the independent checker compares the events
on NATS, the rows that the service shows and both stores.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.checker.check import check_run
from tests.checker.collect import collect, read_definitions
from tests.checker.recording import Run, Start
from tests.checker.stores import collect_neo4j, collect_valkey
from tests.conftest import KafkaAddress
from tests.contract.asyncapi import validate_sent
from tests.e2e.world import INPUTS, SPECS, World
from tests.services import KafkaServer, Neo4jServer, ValkeyServer, running

DOWN_SECONDS = 30.0
SECONDS_BETWEEN_STARTS = 0.25
# The stores may lag behind the tables by the time of a projection and of a reconnect.
CATCH_UP_SECONDS = 60.0


class Load:
    """Starts ceremonies at a steady pace, approves their gates, and remembers the accepted starts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._finishing: set[asyncio.Task[Any]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        self.starts: list[Start] = []

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        self._starting = asyncio.get_running_loop().create_task(self._start())
        try:
            yield
        finally:
            self._stopping = True  # not cancelled: a start under way may be accepted, and has to be remembered
            await self._starting
        await asyncio.gather(*self._finishing)

    async def _start(self) -> None:
        names = list(INPUTS)
        while not self._stopping:
            name = names[len(self.starts) % len(names)]
            correlation = f"corr-{len(self.starts) % 7}"
            ceremony_id = f"c-{len(self.starts)}-{uuid4().hex[:8]}"
            instance_id = await self._world.start(name, ceremony_id, correlation_id=correlation)
            self.starts.append(Start(instance_id, name, correlation))
            task = asyncio.get_running_loop().create_task(self._world.finish(instance_id))
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)
            await asyncio.sleep(SECONDS_BETWEEN_STARTS)


class Site:
    """A world with both stores."""

    def __init__(self, world: World, valkey: ValkeyServer, neo4j: Neo4jServer) -> None:
        self.world = world
        self.valkey = valkey
        self.neo4j = neo4j

    async def run(self, load: Load) -> Run:
        """Everything that can be seen from outside."""
        stores = {
            "valkey": lambda: collect_valkey(self.valkey.address),
            "neo4j": lambda: collect_neo4j(self.neo4j.uri, self.neo4j.user, self.neo4j.password),
        }
        address = f"127.0.0.1:{self.world.worker.grpc.port}"
        definitions = read_definitions(SPECS)
        return await collect(
            self.world.nats.url,
            address,
            definitions,
            load.starts,
            settle_seconds=30,
            stores=stores,
            check=validate_sent,
        )

    async def agrees(self, load: Load) -> None:
        """Return once the checker finds nothing."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CATCH_UP_SECONDS
        while found := check_run(await self.run(load)):
            assert loop.time() < deadline, "\n".join(str(violation) for violation in found[:20])


@pytest.fixture
async def site(kafka: KafkaServer | KafkaAddress, tmp_path: Path) -> AsyncIterator[Site]:
    with running(ValkeyServer(tmp_path / "valkey")) as valkey, running(Neo4jServer(tmp_path / "neo4j")) as neo4j:
        settings: dict[str, Any] = {
            "CEREMONY_TOPIC_PREFIX": f"models-{uuid4().hex[:8]}",
            "VALKEY_HOST": valkey.host,
            "VALKEY_PORT": valkey.port,
            "VALKEY_PASSWORD": valkey.password,
            "NEO4J_URI": neo4j.uri,
            "NEO4J_PASSWORD": neo4j.password,
        }
        async with World(tmp_path, f"kafka://{kafka.bootstrap}", **settings) as world:
            yield Site(world, valkey, neo4j)


async def lost(server: ValkeyServer | Neo4jServer, seconds: float) -> None:
    """Kill a store, and start it again after this time with the rows it had."""
    server.kill()
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.start)


async def emptied(server: ValkeyServer | Neo4jServer) -> None:
    server.kill()
    await asyncio.to_thread(server.forget)
    await asyncio.to_thread(server.start)


@pytest.mark.timeout(420)
async def test_both_stores_equal_the_tables_after_outages_and_a_loss_of_all_their_rows(site: Site) -> None:
    load = Load(site.world)
    async with load():
        await asyncio.gather(
            lost(site.valkey, DOWN_SECONDS),
            later(DOWN_SECONDS / 2, lost(site.neo4j, DOWN_SECONDS)),
        )
        await asyncio.gather(emptied(site.valkey), emptied(site.neo4j))
    assert len(load.starts) > DOWN_SECONDS, "the load was too small to show anything"
    await site.agrees(load)
    run = await site.run(load)
    assert {name: len(stored) for name, stored in run.stores.items()} == dict.fromkeys(run.stores, len(load.starts))


async def later(seconds: float, act: Any) -> None:
    await asyncio.sleep(seconds)
    await act
