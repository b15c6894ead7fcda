"""More partitions: the engine refuses another number on its topics, and goes on under a new prefix."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ports.log import LogFailed
from tests.bridge.projection.world import ValkeySite
from tests.conftest import KafkaAddress
from tests.e2e.world import World, until
from tests.services import KafkaServer, ValkeyServer

pytestmark = pytest.mark.timeout(180)
CEREMONY = Path(sys.executable).with_name("ceremony")


def ceremony(settings: Mapping[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a verb as the page says, its settings in the environment."""
    environment = {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        [CEREMONY, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_ceremonies_go_on_under_a_new_prefix_with_more_partitions(
    kafka: KafkaServer | KafkaAddress, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """Waiting ones, one that an agent works on, and an ended one: the steps of deploy/runbook/partitions.md."""
    # specification 18.10, 22.9, 28.5
    site = ValkeySite(valkey)
    site.wipe()
    site.close()
    store: dict[str, Any] = {"VALKEY_HOST": valkey.host, "VALKEY_PORT": valkey.port, "VALKEY_PASSWORD": valkey.password}
    async with World(
        tmp_path / "world", f"kafka://{kafka.bootstrap}", **store, CEREMONY_TOPIC_PREFIX="grow-3"
    ) as world:
        waiting = [await world.start("approval", f"grow-{number}") for number in range(6)]
        ended = await world.start("merge_chain", "grow-ended")
        await world.finish(ended)
        for instance_id in waiting:
            await until(partial(waits, world, instance_id), "its gate is open")
        await world.stop_ray()
        asked = await world.start("backlog_review", "grow-asked")
        everything = [*waiting, ended, asked]
        await until(lambda: keeps_all(valkey, everything), "the store has all of them")
        reconciled = {
            **store,
            "CEREMONY_LOG": world.log_url,
            "CEREMONY_TOPIC_PREFIX": "grow-3",
            "CEREMONY_PARTITIONS": 3,
        }
        assert (await asyncio.to_thread(ceremony, reconciled, "reconcile")).returncode == 0
        await world.stop_worker()

        world.settings["CEREMONY_PARTITIONS"] = 5
        with pytest.raises(LogFailed, match="partition_count_wrong"):
            await world.start_worker()
        await world.stop_worker()

        grown = {**reconciled, "CEREMONY_TOPIC_PREFIX": "grow-5", "CEREMONY_PARTITIONS": 5}
        dry = await asyncio.to_thread(ceremony, grown, "rehydrate", "--dry-run", "-o", "json")
        assert json.loads(dry.stdout)["counts"]["sound"] == len(everything), dry.stderr
        done = await asyncio.to_thread(ceremony, grown, "rehydrate")
        assert done.returncode == 0, done.stderr

        world.settings["CEREMONY_TOPIC_PREFIX"] = "grow-5"
        world.ray = world.new_ray()
        await world.ray.start()
        await world.start_worker()
        for instance_id in everything:
            await until(partial(known, world, instance_id), f"{instance_id} is back")
        assert (await world.get(ended)).status == "COMPLETED"
        for instance_id in (*waiting, asked):
            assert (await world.finish(instance_id)).status == "COMPLETED", instance_id
        assert len(world.worker.app.views("ceremony")) == 5


def keeps_all(valkey: ValkeyServer, instance_ids: list[str]) -> bool:
    site = ValkeySite(valkey)
    try:
        return set(instance_ids) <= set(site.versions())
    finally:
        site.close()


async def waits(world: World, instance_id: str) -> bool:
    return (await world.get(instance_id)).status == "WAITING_FOR_HUMAN"


async def known(world: World, instance_id: str) -> bool:
    return await world.client.get(instance_id) is not None
