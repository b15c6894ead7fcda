"""The embedded log's disk is full: the worker ends with a clear error, and accepted starts go on when there is room.

A full disk is SQLite's own `PRAGMA max_page_count`, on the connection that the log writes with.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from fleet.planning_ceremony.client import PlanningCeremonyError

from ports.log import LogFailed
from tests.checker.check import check_run
from tests.checker.collect import collect, read_definitions
from tests.checker.recording import Start
from tests.contract.asyncapi import validate_sent
from tests.e2e.world import SPECS, World, until

pytestmark = pytest.mark.timeout(120)
DEFINITIONS = ("backlog_review", "merge_chain")
# Free pages of 4 KiB.
ROOM = 90


async def start_until_refused(world: World, begun: list[Start]) -> None:
    """Start one ceremony after the other; each answer `accepted` is noted at once."""
    number = 0
    while world.worker.failure is None:
        number += 1
        definition = DEFINITIONS[number % len(DEFINITIONS)]
        try:
            async with asyncio.timeout(10):
                begun.append(Start(await world.start(definition, f"full-{number}"), definition))
        except (PlanningCeremonyError, grpc.aio.AioRpcError, TimeoutError):
            return


async def test_a_full_disk_under_load_loses_nothing_accepted(tmp_path: Path) -> None:
    """The independent checker finds every accepted start ended, each effect once and in order."""
    # specification 18.10
    begun: list[Start] = []
    async with World(tmp_path, f"sqlite://{tmp_path}/log.db") as world:
        begun.append(Start(await world.start("merge_chain", "before"), "merge_chain"))
        log: Any = world.worker.app.driver.log
        (pages,) = log.file._writer.execute("PRAGMA page_count").fetchone()
        log.file._writer.execute(f"PRAGMA max_page_count={pages + ROOM}")
        await start_until_refused(world, begun)
        await until(lambda: world.worker.failure is not None, "the worker has noticed that its disk is full")
        assert isinstance(world.worker.failure, LogFailed)
        assert "look at the disk's space" in str(world.worker.failure)
        assert len(begun) > 10, "hardly any load: this proves nothing"
        await world.restart_worker()
        for one in begun:
            assert (await world.finish(one.instance_id)).status == "COMPLETED"
        address = f"127.0.0.1:{world.worker.grpc.port}"
        run = await collect(
            world.nats.url, address, read_definitions(SPECS), begun, settle_seconds=2, check=validate_sent
        )
    assert check_run(run) == []
    assert {start.instance_id for start in begun} <= {instance.instance_id for instance in run.instances}
