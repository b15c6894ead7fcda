"""A copy of an embedded log that is in use: it is whole, and the ceremonies go on from it."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ports.log import LogFailed
from tests.e2e.world import ROOT, World, until

pytestmark = pytest.mark.timeout(120)
PAGE = ROOT / "deploy/runbook/backup.md"


def command(words: str, *paths: Path) -> list[str]:
    """Return the command of the page that holds these words, with other paths."""
    block = next(
        found for found in re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if words in found
    )
    program, option, code, *places = shlex.split(block)
    assert (program, option, len(places)) == ("python3", "-c", len(paths))
    return [sys.executable, option, code, *map(str, paths)]


async def test_a_copy_of_a_log_in_use_goes_on_from_its_moment(tmp_path: Path) -> None:
    """By the commands of the page, under load; the old `.lock` keeps the older file out, until it is moved away too."""
    # specification 22.14
    log, copy = tmp_path / "log.db", tmp_path / "backup.db"
    async with World(tmp_path / "world", f"sqlite://{log}") as world:
        waiting = [await world.start("approval", f"before-{number}") for number in range(3)]
        ended = await world.start("merge_chain", "ended")
        await world.finish(ended)
        for instance_id in waiting:
            await until(partial(waits, world, instance_id), "its gate is open")
        load = asyncio.create_task(keeps_starting(world))
        done = await asyncio.to_thread(subprocess.run, command(".backup(target)", log, copy), check=False)
        load.cancel()
        assert done.returncode == 0
        checking = partial(subprocess.run, capture_output=True, text=True, check=True)
        assert (await asyncio.to_thread(checking, command("integrity_check", copy))).stdout == "ok\n"
        later = await world.start("approval", "later")
        await world.stop_worker()

        for name in ("log.db", "log.db-wal", "log.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        copy.rename(log)
        with pytest.raises(LogFailed, match="log_older"):
            await world.start_worker()
        await world.stop_worker()
        (tmp_path / "log.db.lock").unlink()
        await world.start_worker()
        assert await world.client.get(later) is None
        assert (await world.get(ended)).status == "COMPLETED"
        for instance_id in waiting:
            assert (await world.finish(instance_id)).status == "COMPLETED"


async def waits(world: World, instance_id: str) -> bool:
    return (await world.get(instance_id)).status == "WAITING_FOR_HUMAN"


async def keeps_starting(world: World) -> None:
    for number in range(10_000):
        await world.start("merge_chain", f"load-{number}")
