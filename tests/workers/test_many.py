"""Twelve workers on twelve partitions, and one worker more than there are partitions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from tests.e2e.world import INPUTS
from tests.services import KafkaServer
from tests.workers.fleet import Fleet, stub_of
from tests.workers.load import accounted

pytestmark = [pytest.mark.timeout(110), pytest.mark.uncounted]
WORKERS = 12


async def test_twelve_workers_own_a_partition_each(kafka: KafkaServer, tmp_path: Path) -> None:
    """Each worker starts, reads and lists the ceremonies of all; each effect id is on CEREMONY once."""
    # specification 16.7
    async with Fleet(tmp_path, kafka.bootstrap, partitions=WORKERS) as fleet:
        await asyncio.gather(*(fleet.start() for _ in range(WORKERS)))
        await fleet.shared()
        assert [len(worker.engine.partitions.mine()) for worker in fleet.workers] == [1] * WORKERS
        started = []
        for number, worker in enumerate(fleet.workers):
            # Twelve workers share one loop: an owner may answer later than a hop waits, and the client asks again.
            async with AsyncPlanningCeremonyClient(f"127.0.0.1:{worker.grpc.port}", timeout=30) as client:
                started += [
                    await client.start(
                        "merge_chain",
                        ceremony_id=f"m-{number}-{turn}",
                        story_id="S1",
                        requested_by="anna",
                        inputs=INPUTS["merge_chain"],
                    )
                    for turn in range(3)
                ]
        assert await accounted(fleet, started) == {}
        for worker in (fleet.workers[0], fleet.workers[7]):
            async with stub_of(worker) as stub:
                listed = await stub.ListPlanningCeremonyInstances(pb.ListPlanningCeremonyInstancesRequest(limit=1000))
                assert listed.total_count == 3 * WORKERS
                assert sorted(one.instance_id for one in listed.ceremonies) == sorted(started)
