"""The pause of partitions that do not move: a worker is killed and started again, the other one's own go on.

`python -m tests.workers.staying KAFKA --runs 5` measures it, with starts on the partitions of the worker that lives.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from ceremony import heap
from tests.e2e.world import until
from tests.workers.fleet import Fleet, stub_of

PARTITIONS = 4
# A start is tried again after this time.
AGAIN_SECONDS = 0.005


class Staying:
    """Times of accepted starts on each partition of one worker."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.worker = fleet.workers[0]
        self.partitions = sorted(self.worker.engine.partitions.mine())
        self.accepted: dict[int, list[float]] = {}
        self.refusals = 0
        self.started: list[str] = []

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """Start ceremonies on each partition, one after the other."""
        self.accepted = {number: [time.monotonic()] for number in self.partitions}
        tasks = [asyncio.create_task(self._starts(number)) for number in self.partitions]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()

    async def _starts(self, partition: int) -> None:
        log = self.worker.engine.partitions._log
        async with stub_of(self.worker) as stub:
            for number in itertools.count():
                name = f"stay-{partition}-{time.monotonic_ns()}-{number}"
                if log.partition_of(f"{name}:S1".encode(), PARTITIONS) != partition:
                    continue
                try:
                    answer = await stub.StartPlanningCeremony(self.fleet.request(name, "merge_chain"), timeout=15)
                except grpc.aio.AioRpcError as error:
                    assert error.code().name == "UNAVAILABLE", error  # noqa: PT017
                    self.refusals += 1
                    await asyncio.sleep(AGAIN_SECONDS)
                    continue
                self.started.append(answer.instance_id)
                self.accepted[partition].append(time.monotonic())
                await asyncio.sleep(AGAIN_SECONDS)

    def longest_pause(self) -> float:
        return max(b - a for times in self.accepted.values() for a, b in itertools.pairwise(times))


async def knows_both(fleet: Fleet) -> None:
    """Return once two workers share the partitions and each is served."""
    worker = fleet.workers[0]

    def shared() -> bool:
        partitions = worker.engine.partitions
        half = len(partitions.mine()) == PARTITIONS // 2
        return half and partitions.readiness()["tables"] == "ok" and worker.directory is not None and everywhere(fleet)

    await until(shared, "two workers share the partitions")


def everywhere(fleet: Fleet) -> bool:
    directory = fleet.workers[0].directory
    try:
        return directory is not None and len(directory.partitions_by_address()) == 2
    except Exception:  # noqa: BLE001 - a partition has no owner yet
        return False


async def _measure(kafka: str, runs: int) -> None:
    heap.collect_seldom()  # as in a worker of its own
    with tempfile.TemporaryDirectory() as folder:
        async with Fleet(Path(folder) / "fleet", kafka, partitions=PARTITIONS) as fleet:
            await fleet.start()
            other = await fleet.process()
            await other.ready()
            await knows_both(fleet)
            for run in range(runs):
                staying = Staying(fleet)
                async with staying.measured():
                    await asyncio.sleep(1)
                    other.kill()
                    other.start()
                    await asyncio.sleep(12)
                print(
                    f"run {run + 1}: longest pause {staying.longest_pause() * 1000:.0f} ms, {staying.refusals} refused,"
                    f" {len(staying.started)} accepted on partitions {staying.partitions}",
                    flush=True,
                )
                await other.ready()
                await knows_both(fleet)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kafka", help="host:port")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    asyncio.run(_measure(given.kafka, given.runs))
