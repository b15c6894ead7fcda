"""A state folder belongs to one worker, and its content is only a copy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from streams.transport.partition.rocks_store import RocksStores
from tests.e2e.world import WorkerProcess, World, until, worker_settings
from tests.services import NatsServer


async def test_a_second_worker_on_one_folder_ends_with_one_line(nats: NatsServer, tmp_path: Path) -> None:
    """Its exit code is 1; the first worker goes on."""
    # specification 22.8
    first = RocksStores(tmp_path / "state")
    await first.start()
    told = worker_settings(f"sqlite://{tmp_path}/log.db", nats.url, "127.0.0.1:9", CEREMONY_STATE="rocks")
    second = WorkerProcess(tmp_path, {**told, "CEREMONY_STATE_DIR": tmp_path / "state"})
    second.start()
    try:
        code = await until(lambda: (second.returncode,) if second.returncode is not None else None, "it ends")
    finally:
        second.kill()
    await first.stop()
    output = (tmp_path / "worker.log").read_text()
    assert code == (1,)
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith(f"state_dir_in_use: {tmp_path}/state is another worker's"), output


@pytest.mark.parametrize("damage", ["deleted", "truncated", "garbage"])
async def test_a_worker_starts_with_all_its_rows_from_a_damaged_folder(damage: str, tmp_path: Path) -> None:
    # specification 22.8
    state = tmp_path / "state"
    url = f"sqlite://{tmp_path}/log.db"
    async with World(tmp_path / "world", url, CEREMONY_STATE="rocks", CEREMONY_STATE_DIR=state) as world:
        instance_id = await world.start("approval", "kept")
        await until(lambda: world.worker.engine.reads.get(instance_id), "it is there")
        await world.stop_worker()
        await asyncio.to_thread(spoil, state / "partitions", damage)
        await world.start_worker()
        assert (await world.get(instance_id)).status == "WAITING_FOR_HUMAN"
        assert (await world.finish(instance_id)).status == "COMPLETED"


def spoil(partitions: Path, damage: str) -> None:
    """Damage the files as a killed worker does, and worse."""
    for number in range(3):
        folder = partitions / f"ceremony-{number}"
        folder.mkdir()
        if damage == "deleted":
            folder.rmdir()
        for name in ("CURRENT", "MANIFEST-000005", "000008.sst", "LOCK"):
            if damage != "deleted":
                (folder / name).write_bytes(b"" if damage == "truncated" else b"\0garbage" * 100)
