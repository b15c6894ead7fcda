"""A worker on Kafka with real stores: their rows equal the tables, whoever restarts, and at any load a rebuild ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from steps.secrets.redactor import TextRedactor
from tables.instance import Instance
from tables.read_model import document_of, neo4j_properties, valkey_json
from tests.bridge.projection.world import Neo4jSite, ValkeySite
from tests.conftest import KafkaAddress
from tests.e2e.world import INPUTS, WorkerProcess, World, until, worker_settings
from tests.services import KafkaServer, Neo4jServer, ValkeyServer, free_port

pytestmark = pytest.mark.timeout(180)
CEREMONY = Path(sys.executable).with_name("ceremony")


@pytest.fixture
def sites(valkey: ValkeyServer, neo4j: Neo4jServer) -> Iterator[tuple[ValkeySite, Neo4jSite]]:
    found = ValkeySite(valkey), Neo4jSite(neo4j)
    for site in found:
        site.wipe()
    yield found
    for site in found:
        site.close()


def settings_of(valkey: ValkeyServer, neo4j: Neo4jServer, prefix: str) -> Mapping[str, Any]:
    return {
        "CEREMONY_TOPIC_PREFIX": prefix,
        "VALKEY_HOST": valkey.host,
        "VALKEY_PORT": valkey.port,
        "VALKEY_PASSWORD": valkey.password,
        "NEO4J_URI": neo4j.uri,
        "NEO4J_USER": neo4j.user,
        "NEO4J_PASSWORD": neo4j.password,
    }


def rows_of(world: World) -> dict[str, Instance]:
    found: dict[str, Instance] = {}
    for view in world.worker.app.views("ceremony").values():
        for row in view.rows("ceremonies").values():
            found[row.instance_id] = row
    return found


def differences(world: World, valkey: ValkeySite, neo4j: Neo4jSite) -> list[str]:
    """Return the instances whose document in a store is not that of their row."""
    rows = rows_of(world)
    try:
        there = valkey.versions().keys()
    except AssertionError:
        return ["valkey: its sets are not those of its documents"]
    wrong = [f"valkey: {there ^ rows.keys()}"] if there != rows.keys() else []
    if neo4j.ask("MATCH (i:CeremonyInstance) RETURN count(i) AS count") != [{"count": len(rows)}]:
        wrong.append("neo4j: another number of nodes")
    for instance_id, row in rows.items():
        definition = world.worker.engine.reads.definition_of(row)
        assert definition is not None
        document = document_of(row, TextRedactor().of(definition.prompts).encoded)
        text: Any = valkey.client.get(f"ceremony:instance:{instance_id}") or b"null"
        if json.loads(text) != json.loads(valkey_json(document)):
            wrong.append(f"valkey: {instance_id}")
        nodes = neo4j.ask("MATCH (i:CeremonyInstance {instance_id: $id}) RETURN properties(i) AS node", id=instance_id)
        if nodes != [{"node": neo4j_properties(document)}]:
            wrong.append(f"neo4j: {instance_id}")
    return wrong


async def test_both_stores_equal_the_tables_after_every_ceremony_and_after_a_rebuild(
    kafka: KafkaServer | KafkaAddress,
    valkey: ValkeyServer,
    neo4j: Neo4jServer,
    sites: tuple[ValkeySite, Neo4jSite],
    tmp_path: Path,
) -> None:
    # specification 25.1, 25.3, 25.9, 25.10, 25.13
    settings = settings_of(valkey, neo4j, "readmodels")
    async with World(tmp_path, f"kafka://{kafka.bootstrap}", **settings) as world:
        ids = [await world.start(name, f"{name}-{number}") for name in INPUTS for number in range(2)]
        secret = "AKIA" + "Q3EGRW5HVQ4TWPDU"
        ids.insert(0, await world.start("merge_chain", "secret", inputs={"payload": {"note": f"key {secret}"}}))
        for instance_id in ids[:-1]:
            await world.finish(instance_id)
        await until(lambda: world.ok("valkey", "neo4j"), "both stores answer")
        await until_equal(world, *sites)
        assert all(projector.lag_records == 0 for projector in world.worker.projectors)
        kept: Any = sites[0].client.get(f"ceremony:instance:{ids[0]}")
        assert secret.encode() not in kept and b"[redacted:" in kept and b"$.step_outputs" in kept
        status, body = await world.http("/readyz")
        assert status == 200 and json.loads(body)["neighbours"]["neo4j"]["state"] == "ok"
        _, metrics = await world.http("/metrics")
        assert 'ceremony_projector_up{store="valkey"} 1.0' in metrics
        for site in sites:
            site.plant("stale:s1")
        done = await asyncio.to_thread(run, settings, kafka.bootstrap, "rebuild", "valkey")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"store": "valkey", "partitions": 3, "rebuilt": 3}
        sites[1].ask("MATCH (i:CeremonyInstance {instance_id: $id}) SET i.current_state = 'NOWHERE'", id=ids[0])
        sites[1].ask("MATCH (i:CeremonyInstance {instance_id: $id}) DETACH DELETE i", id=ids[1])
        found = await asyncio.to_thread(run, settings, kafka.bootstrap, "reconcile")
        assert found.returncode == 1, found.stderr
        told = json.loads(found.stdout)
        assert told["rows"] == len(ids)
        problems = {(one["store"], one["instance_id"], one["problem"]) for one in told["differences"]}
        assert problems == {
            ("neo4j", ids[0], "different"),
            ("neo4j", ids[1], "missing"),
            ("neo4j", "stale:s1", "surplus"),
        }
        fixed = await asyncio.to_thread(run, settings, kafka.bootstrap, "reconcile", "--fix")
        assert fixed.returncode == 0, fixed.stderr
        clean = await asyncio.to_thread(run, settings, kafka.bootstrap, "reconcile")
        assert clean.returncode == 0 and json.loads(clean.stdout)["differences"] == []
        await until_equal(world, *sites)
        await world.restart_worker()
        await world.finish(ids[-1])
        await until_equal(world, *sites)


async def test_a_projector_can_run_in_a_process_of_its_own(
    kafka: KafkaServer | KafkaAddress,
    valkey: ValkeyServer,
    neo4j: Neo4jServer,
    sites: tuple[ValkeySite, Neo4jSite],
    tmp_path: Path,
) -> None:
    # specification 25.3
    settings = settings_of(valkey, neo4j, "apart")
    async with World(tmp_path, f"kafka://{kafka.bootstrap}", CEREMONY_TOPIC_PREFIX="apart") as world:
        told = worker_settings(f"kafka://{kafka.bootstrap}", world.nats.url, "127.0.0.1:9", **settings)
        process = WorkerProcess(tmp_path, {**told, "CEREMONY_ROLE": "projector"})
        process.start()
        try:
            instance_id = await world.start("approval", "apart")
            await until_equal(world, *sites)
            await world.finish(instance_id)
            await until_equal(world, *sites)
        finally:
            process.kill()
        assert "neo4j" not in world.worker.readiness.states()


async def test_ceremonies_come_to_their_end_while_both_stores_are_away(tmp_path: Path) -> None:
    # specification 25.10
    away: dict[str, Any] = {
        "VALKEY_HOST": "127.0.0.1",
        "VALKEY_PORT": free_port(),
        "NEO4J_URI": f"bolt://127.0.0.1:{free_port()}",
        "NEO4J_PASSWORD": "none",
    }
    async with World(tmp_path, f"sqlite://{tmp_path}/log.db", **away) as world:
        ids = [await world.start(name, f"{name}-{number}") for name in INPUTS for number in range(2)]
        for instance_id in ids:
            assert (await world.finish(instance_id)).status == "COMPLETED"
        states = await until(lambda: both_away(world.worker.readiness.states()), "both stores are named")
        assert "no connection to 127.0.0.1" in states["valkey"] and "records wait" in states["neo4j"]
        status, body = await world.http("/readyz")
        assert status == 200, body
    assert not world.worker.halfway, "it stops in time, with a projector for each read model"


def both_away(states: Mapping[str, str]) -> Mapping[str, str] | None:
    return states if all("no connection" in states[name] for name in ("valkey", "neo4j")) else None


async def until_equal(world: World, valkey: ValkeySite, neo4j: Neo4jSite) -> None:
    found: list[str] = []
    try:
        async with asyncio.timeout(30):
            while found := await asyncio.to_thread(differences, world, valkey, neo4j):
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(found) from None


def run(settings: Mapping[str, Any], bootstrap: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        [CEREMONY, *arguments, "-o", "json"],
        env={**os.environ, **environment, "CEREMONY_LOG": f"kafka://{bootstrap}", "CEREMONY_PARTITIONS": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
