"""Workers on Kafka that are killed, stopped, added and frozen under load lose nothing; rows stay exact."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pytest

from ports.log import Record
from streams.transport.app import CeremonyApp
from tests.services import KafkaServer
from tests.transport.counting_worker import counting_app

pytestmark = [pytest.mark.timeout(120), pytest.mark.uncounted]
PARTITIONS, KEYS = 2, 40


class Load:
    """One run: worker processes on topics of their own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.prefix = "f" + uuid.uuid4().hex[:8]
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.sent: Counter[bytes] = Counter()
        self.app: CeremonyApp = counting_app(url, self.prefix, PARTITIONS)

    async def __aenter__(self) -> Self:
        """Open the log only: this process serves no partition while workers run."""
        log = self.app.commit_log
        await log.start()
        await log.create(self.app.all_topics)
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        await self.app.commit_log.stop()

    def worker(self) -> subprocess.Popen[bytes]:
        number = len(self.workers)
        with (self.folder / f"worker{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.transport.counting_worker",
                    self.url,
                    self.prefix,
                    str(PARTITIONS),
                ],
                stdout=log,
                stderr=log,
            )
        self.workers.append(process)
        return process

    async def ready(self, number: int) -> None:
        async with asyncio.timeout(40):
            while b"ready" not in (self.folder / f"worker{number}.log").read_bytes():
                assert self.workers[number].poll() is None, (self.folder / f"worker{number}.log").read_text()
                await asyncio.sleep(0.02)

    async def send(self, count: int) -> None:
        log = self.app.commit_log
        keys = [b"k%d" % (number % KEYS) for number in range(count)]
        self.sent.update(keys)
        for first in range(0, count, 200):
            await asyncio.gather(
                *(
                    log.append(f"{self.prefix}.commands", log.partition_of(key, PARTITIONS), key, b"x")
                    for key in keys[first : first + 200]
                )
            )

    async def answered(self, at_least: int) -> None:
        async with asyncio.timeout(60):
            while sum(end for _, end in await self.app.commit_log.ends(f"{self.prefix}.echoes")) < at_least:
                await asyncio.sleep(0.05)

    async def read(self, topic: str) -> list[Record]:
        log, records = self.app.commit_log, list[Record]()
        for number, (start, end) in enumerate(await log.ends(f"{self.prefix}.{topic}")):
            async for some in log.read(f"{self.prefix}.{topic}", number, start, end):
                records += some
        return records

    async def check(self) -> None:
        """Let a last worker, in this process, reach the end; then rows are exact and every answer is there."""
        async with asyncio.timeout(60):
            await self.app.start()
            while not self.app.settled or sum(view.position for view in self.app.views("counter").values()) < sum(
                self.sent.values()
            ):
                await asyncio.sleep(0.02)
        try:
            rows = {key: row for view in self.app.views("counter").values() for key, row in view.rows("counts").items()}
            assert rows == self.sent
            wanted = {(key, b"%d" % number) for key, count in self.sent.items() for number in range(1, count + 1)}
            async with asyncio.timeout(30):
                while {(record.key, record.value) for record in await self.read("echoes")} != wanted:
                    await asyncio.sleep(0.1)
        finally:
            await self.app.stop()
            await self.app.commit_log.start()


@pytest.fixture
def load(kafka: Any, tmp_path: Path) -> Load:
    return Load(f"kafka://{kafka.bootstrap}", tmp_path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_ended_three_times_under_load_loses_nothing(load: Load, how: signal.Signals) -> None:
    async with load:
        for number in range(3):
            worker = load.worker()
            await load.ready(number)
            await load.send(2_000)
            await load.answered(600 + 1_500 * number)
            worker.send_signal(how)
            code = await asyncio.to_thread(worker.wait, 20)
            assert code == (0 if how == signal.SIGTERM else -signal.SIGKILL)
        if how == signal.SIGTERM:
            assert len(await load.read("answers")) < 6_000, "it was ended under load"
        await load.check()
        if how == signal.SIGTERM:
            answers = Counter((record.key, record.value) for record in await load.read("answers"))
            assert max(answers.values()) == 1, "a stop in good order repeats nothing"


async def test_a_second_worker_that_joins_and_leaves_under_load_loses_nothing(load: Load) -> None:
    async with load:
        load.worker()
        await load.ready(0)
        sending = asyncio.create_task(load.send(6_000))
        second = load.worker()
        await load.ready(1)
        await load.answered(1_000)
        second.terminate()
        assert await asyncio.to_thread(second.wait, 20) == 0
        await sending
        await load.answered(4_000)
        load.workers[0].kill()
        await load.check()


async def test_a_frozen_worker_that_wakes_up_does_no_harm(load: Load) -> None:
    """After the session timeout its partitions go to another worker; awake, it is fenced and joins again."""
    async with load:
        frozen = load.worker()
        await load.ready(0)
        await load.send(3_000)
        await load.answered(300)
        frozen.send_signal(signal.SIGSTOP)
        load.worker()
        await load.ready(1)
        await load.send(2_000)
        await load.answered(4_000)
        frozen.send_signal(signal.SIGCONT)
        await load.send(2_000)
        await load.answered(7_000)
        await asyncio.sleep(2)
        for worker in load.workers:
            worker.terminate()
        for worker in load.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(worker.wait, 20)
        assert [worker.returncode for worker in load.workers] == [0, 0]
        assert "was fenced" in (load.folder / "worker0.log").read_text()
        await load.check()


async def test_a_broker_killed_under_load_only_causes_a_delay(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path / "kafka", flush_messages=1)
    try:
        await asyncio.to_thread(server.start)
        async with Load(f"kafka://{server.bootstrap}", tmp_path) as load:
            worker = load.worker()
            await load.ready(0)
            await load.send(2_000)
            await load.answered(500)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(3)
            assert load.app.commit_log.state != "ok"
            await asyncio.to_thread(server.start)
            await load.send(1_000)
            await load.answered(3_000)
            assert load.app.commit_log.state == "ok"
            assert worker.poll() is None, "an outage is no reason to end"
            worker.terminate()
            assert await asyncio.to_thread(worker.wait, 20) == 0
            await load.check()
    finally:
        await asyncio.to_thread(server.stop)
