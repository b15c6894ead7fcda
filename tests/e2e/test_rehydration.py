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
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.bridge.projection.world import Neo4jSite, ValkeySite
from tests.e2e.test_history_beyond_the_log import newest_in_valkey
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


def rehydrate(settings: Any, log: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        [CEREMONY, "rehydrate", *arguments],
        env={**os.environ, **environment, "CEREMONY_LOG": log, "CEREMONY_PARTITIONS": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class LostLog(NamedTuple):
    """A log, and the one that replaces it: another file, or other topics of a Kafka that is shared."""

    address: str
    prefix: str
    new_address: str
    new_prefix: str


def lost_log(kind: str, request: pytest.FixtureRequest, folder: Path) -> LostLog:
    if kind == "sqlite":
        return LostLog(f"sqlite://{folder}/lost.db", "disaster", f"sqlite://{folder}/fresh.db", "disaster")
    address = f"kafka://{request.getfixturevalue('kafka').bootstrap}"
    return LostLog(address, f"lost-{uuid4().hex[:8]}", address, f"fresh-{uuid4().hex[:8]}")


async def topics_of(log: LostLog) -> list[str]:
    """The topics of the new log; none where there is no such file."""
    if log.new_address.startswith("sqlite"):
        file = Path(log.new_address.removeprefix("sqlite://"))
        return [str(found) for found in file.parent.glob(f"{file.name}*")]
    admin = AIOKafkaAdminClient(bootstrap_servers=log.new_address.removeprefix("kafka://"))
    await admin.start()
    try:
        return [name for name in await admin.list_topics() if name.startswith(log.new_prefix)]
    finally:
        await admin.close()


@pytest.mark.parametrize(
    ("kind", "source"), [("sqlite", "valkey"), ("sqlite", "neo4j"), ("sqlite", "both"), ("kafka", "both")]
)
async def test_after_the_loss_of_the_log_every_ceremony_goes_on_to_its_end(
    kind: str,
    source: str,
    request: pytest.FixtureRequest,
    valkey: ValkeyServer,
    neo4j: Neo4jServer,
    sites: tuple[ValkeySite, Neo4jSite],
    tmp_path: Path,
) -> None:
    """Waiting ones, ones that an agent works on, and ended ones; the restored rows are in both stores again."""
    # specification 26.7, 28.3, 28.5, 28.6
    log = lost_log(kind, request, tmp_path)
    settings = settings_of(valkey, neo4j, log.prefix)
    async with World(tmp_path / "world", log.address, **settings) as world:
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
        events = await world.client.history(paused)
        newest = events.events[-1].effect_id
        await until(lambda: newest_in_valkey(sites[0], paused) == newest, "valkey has all events")
        await world.stop_worker()

        fresh, settings = log.new_address, settings_of(valkey, neo4j, log.new_prefix)
        options = () if source == "both" else ("--from", source)
        dry = await asyncio.to_thread(rehydrate, settings, fresh, *options, "--dry-run", "-o", "json")
        assert await topics_of(log) == [], "a report writes nothing"
        assert dry.returncode == 0, dry.stderr
        assert json.loads(dry.stdout)["counts"] == {"sound": 6, "lossy": 0, "broken": 0, "skipped": 0}
        done = await asyncio.to_thread(rehydrate, settings, fresh, *options)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (
            0,
            "6 ceremonies: 6 sound, 0 lossy, 0 broken, 0 skipped; 6 restored",
        ), done.stderr

        world.move_to(fresh, CEREMONY_TOPIC_PREFIX=log.new_prefix)
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
        later = await world.client.history(paused)
        old = len(events.events)
        assert [event.effect_id for event in later.events[:old]] == [event.effect_id for event in events.events]
        assert {event.source for event in later.events[:old]} == {"valkey"}
        assert "it was restored here" in later.events[old].missing_before and not later.complete
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
    done = await asyncio.to_thread(rehydrate, settings, f"sqlite://{tmp_path}/log.db", "--from", "valkey")
    assert done.returncode == 1
    assert "planted:s1" in done.stdout and "property_missing: valkey: engine is missing" in done.stdout
    assert "1 broken" in done.stdout
    none = await asyncio.to_thread(rehydrate, {"VALKEY_HOST": ""}, f"sqlite://{tmp_path}/log.db", "--from", "valkey")
    assert none.returncode == 2
