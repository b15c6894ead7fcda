"""Two releases share a group during a rolling upgrade: partitions go to the newer one, and go back only on demand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e.world import WorkerProcess, until
from tests.services import KafkaServer
from tests.workers.fleet import Fleet
from tests.workers.load import Load, accounted

pytestmark = [pytest.mark.timeout(110), pytest.mark.uncounted]
OLDER = "tests.workers.older"


async def test_a_rolling_upgrade_under_load_loses_nothing(kafka: KafkaServer, tmp_path: Path) -> None:
    """One new worker, then one old worker less, twice: the order of the runbook."""
    # specification 24.3, 24.5
    async with Fleet(tmp_path, kafka.bootstrap, partitions=4) as fleet:
        older = [await fleet.process(module=OLDER) for _ in range(2)]
        for process in older:
            await process.ready()
        load = Load(fleet)
        async with load.running():
            for process in older:
                newer = await fleet.process()
                await newer.ready()
                assert await asyncio.to_thread(process.terminate) == 0, process.last_words()
                newer.must_live()
        assert await accounted(fleet, load.started) == {}


async def test_the_death_of_the_only_new_worker_in_an_upgrade_loses_nothing(kafka: KafkaServer, tmp_path: Path) -> None:
    """Its partitions come to old workers, which end rather than fold them; the new one is started again and has all."""
    # specification 24.5
    async with Fleet(tmp_path, kafka.bootstrap, partitions=4) as fleet:
        older = [await fleet.process(module=OLDER) for _ in range(2)]
        for process in older:
            await process.ready()
        newer = await fleet.process()
        await newer.ready()
        load = Load(fleet)
        async with load.running():
            await asyncio.sleep(1.0)
            newer.kill()
            await until(lambda: not all(process.running for process in older), "an older worker has ended")
            newer.start()
            await newer.ready()
        ended = [process for process in older if not process.running]
        assert [process.returncode for process in ended] == [1] * len(ended)
        assert all("fold_too_new: " in last_line(process) for process in ended)
        for process in older:
            if process.running:
                await asyncio.to_thread(process.terminate)
        assert await accounted(fleet, load.started) == {}


async def test_an_older_worker_serves_no_partition_of_a_newer_one_unless_it_may(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    # specification 24.5
    async with Fleet(tmp_path, kafka.bootstrap, partitions=4) as fleet:
        newer = await fleet.process()
        await newer.ready()
        load = Load(fleet)
        async with load.running():
            await asyncio.sleep(1.0)
        assert await asyncio.to_thread(newer.terminate) == 0
        refused = await fleet.process(module=OLDER)
        await until(lambda: not refused.running, "the older worker has ended")
        assert refused.returncode == 1
        assert "fold_too_new: " in last_line(refused) and "upgrade this worker" in last_line(refused)
        back = await fleet.process(module=OLDER, CEREMONY_ACCEPT_NEWER_FOLD="true")
        await back.ready()
        later = Load(fleet, "later")
        async with later.running():
            await asyncio.sleep(1.0)
        back.must_live()
        assert await accounted(fleet, [*load.started, *later.started]) == {}


def last_line(process: WorkerProcess) -> str:
    return process.last_words().rpartition(" | ")[2]
