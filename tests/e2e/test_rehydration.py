"""The log is lost with everything in it: the ceremonies come back from a store, and go on to their end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bridge.projection.world import Neo4jSite, ValkeySite
from tests.e2e.test_read_models import settings_of, until_equal
from tests.e2e.world import World, until
from tests.services import Neo4jServer, ValkeyServer

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


def rehydrate(settings: Any, log: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        [CEREMONY, "rehydrate", *arguments],
        env={**os.environ, **environment, "CEREMONY_LOG": f"sqlite://{log}", "CEREMONY_PARTITIONS": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("source", ["valkey", "neo4j", "both"])
async def test_after_the_loss_of_the_log_every_ceremony_goes_on_to_its_end(
    source: str, valkey: ValkeyServer, neo4j: Neo4jServer, sites: tuple[ValkeySite, Neo4jSite], tmp_path: Path
) -> None:
    """Waiting ones, ones that an agent works on, and ended ones; the restored rows are in both stores again."""
    # specification 28.3, 28.5, 28.6
    settings = settings_of(valkey, neo4j, "disaster")
    lost, fresh = tmp_path / "lost.db", tmp_path / "fresh.db"
    async with World(tmp_path / "world", f"sqlite://{lost}", **settings) as world:
        waiting = [await world.start("approval", f"waiting-{number}") for number in range(3)]
        ended = await world.start("merge_chain", "ended")
        await world.finish(ended)
        paused = await world.start("approval", "paused")
        for instance_id in [*waiting, paused]:
            await until(partial(at, world, instance_id, "WAITING_FOR_HUMAN"), "its gate is open")
        await world.client.pause(paused, actor="ana", reason="lunch")
        await world.stop_ray()
        asked = await world.start("backlog_review", "asked")
        await until(lambda: world.ok("valkey", "neo4j"), "both stores answer")
        await until_equal(world, *sites)
        before = {one: (await world.get(one)).version for one in (*waiting, ended, paused, asked)}
        await world.stop_worker()

        options = () if source == "both" else ("--from", source)
        dry = await asyncio.to_thread(rehydrate, settings, fresh, *options, "--dry-run", "-o", "json")
        assert dry.returncode == 0, dry.stderr
        assert json.loads(dry.stdout)["counts"] == {"sound": 6, "lossy": 0, "broken": 0, "skipped": 0}
        done = await asyncio.to_thread(rehydrate, settings, fresh, *options)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (
            0,
            "6 ceremonies: 6 sound, 0 lossy, 0 broken, 0 skipped; 6 restored",
        ), done.stderr

        world.log_url = f"sqlite://{fresh}"
        world.ray = world.new_ray()
        await world.ray.start()
        await world.start_worker()
        for instance_id, version in before.items():
            await until(partial(restored, world, instance_id, version), f"{instance_id} is back")
        assert (await world.get(ended)).status == "COMPLETED"
        assert (await world.get(paused)).status == "PAUSED"
        await world.client.resume(paused, actor="ana")
        for instance_id in (*waiting, paused, asked):
            assert (await world.finish(instance_id)).status == "COMPLETED", instance_id
        await until_equal(world, *sites)
        await world.stop_worker()
        again = await asyncio.to_thread(rehydrate, settings, fresh, "-o", "json")
        assert json.loads(again.stdout)["counts"] == {"sound": 0, "lossy": 0, "broken": 0, "skipped": 6}


async def at(world: World, instance_id: str, status: str) -> bool:
    return (await world.get(instance_id)).status == status


async def restored(world: World, instance_id: str, version: int) -> bool:
    found = await world.client.get(instance_id)
    return found is not None and found.version > version + 1000


async def test_a_broken_ceremony_ends_the_verb_with_1_and_is_shown(
    valkey: ValkeyServer, neo4j: Neo4jServer, sites: tuple[ValkeySite, Neo4jSite], tmp_path: Path
) -> None:
    # specification 28.6
    sites[0].plant("planted:s1")
    settings = settings_of(valkey, neo4j, "broken")
    done = await asyncio.to_thread(rehydrate, settings, tmp_path / "log.db", "--from", "valkey")
    assert done.returncode == 1
    assert "planted:s1" in done.stdout and "property_missing: valkey: engine is missing" in done.stdout
    assert "1 broken" in done.stdout
    none = await asyncio.to_thread(rehydrate, {"VALKEY_HOST": ""}, tmp_path / "log.db", "--from", "valkey")
    assert none.returncode == 2
