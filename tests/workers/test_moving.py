"""Workers stop, die, freeze and come back: pauses are short, nothing is lost or sent twice, no answer is old."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from ceremony.worker import Worker
from streams.api import Unavailable
from streams.waiters import FOLD_SECONDS
from tests.bridge.grpc.world import refused
from tests.e2e.world import http_get, until
from tests.services import KafkaServer
from tests.workers import staying
from tests.workers.fleet import Fleet, stub_at, stub_of
from tests.workers.load import Load, accounted, measured

pytestmark = [pytest.mark.timeout(110), pytest.mark.uncounted]


async def test_workers_that_stop_and_die_under_load(kafka: KafkaServer, tmp_path: Path) -> None:
    """On SIGTERM no partition pauses for 5 s; on kill -9 for the session timeout and a recovery. Nothing is lost."""
    # specification 18.1, 18.8
    async with Fleet(tmp_path, kafka.bootstrap, partitions=4) as fleet:
        first, second, third = [await fleet.process() for _ in range(3)]
        for process in (first, second, third):
            await process.ready()
        load = Load(fleet)
        async with load.running():
            stopping = asyncio.create_task(asyncio.to_thread(first.terminate))
            stopped = await measured(fleet, 5)
            assert await stopping == 0
            second.kill()
            killed = await measured(fleet, 11)
            third.must_live()
        assert max(stopped) < 5.0, stopped
        assert max(killed) < 10.9, killed
        assert await accounted(fleet, load.started) == {}


async def test_partitions_that_stay_are_served_through_a_rebalance(kafka: KafkaServer, tmp_path: Path) -> None:
    """One of two workers is killed and starts again before its session has ended; the other one's own go on."""
    # specification 18.17
    async with Fleet(tmp_path, kafka.bootstrap, partitions=staying.PARTITIONS) as fleet:
        await fleet.start()
        other = await fleet.process()
        await other.ready()
        await staying.knows_both(fleet)
        starts = staying.Staying(fleet)
        async with starts.measured():
            other.kill()
            other.start()
            await other.ready()
            await staying.knows_both(fleet)
        assert (starts.refusals, starts.longest_pause() < FOLD_SECONDS) == (0, True), starts.longest_pause()
        assert await accounted(fleet, starts.started) == {}


async def test_a_restart_in_place_keeps_its_partitions(kafka: KafkaServer, tmp_path: Path) -> None:
    """With a worker id the group waits for it: nobody else takes its partitions."""
    # specification 22.7
    async with Fleet(tmp_path, kafka.bootstrap, partitions=4) as fleet:
        named, other = await fleet.process(WORKER_ID="a"), await fleet.start(WORKER_ID="b")
        await named.ready()
        await until(lambda: len(other.engine.partitions.mine()) == 2, "the partitions are shared")
        mine = sorted(other.engine.partitions.mine())
        await asyncio.to_thread(named.terminate)
        named.start()
        await named.ready()
        await until(lambda: knows_two(other), "both are known")
        assert sorted(other.engine.partitions.mine()) == mine


def knows_two(worker: Worker) -> bool:
    try:
        return worker.directory is not None and len(worker.directory.partitions_by_address()) == 2
    except Unavailable:  # some partitions have no owner yet
        return False


async def test_a_worker_that_was_frozen_gives_no_old_answer(kafka: KafkaServer, tmp_path: Path) -> None:
    """Its partitions have moved meanwhile. It answers UNAVAILABLE, since its membership is not confirmed."""
    # specification 14.16
    async with Fleet(tmp_path, kafka.bootstrap, partitions=2) as fleet:
        zombie, other = await fleet.process(), await fleet.start()
        await zombie.ready()
        await until(lambda: len(other.engine.partitions.mine()) == 1, "the partitions are shared")
        await until(lambda: knows_two(other), "both are known")
        partition = next(number for number in range(2) if number not in other.engine.partitions.mine())
        name = fleet.name_in(partition)
        async with stub_of(other) as asked, stub_at(zombie.address) as frozen:
            await asked.StartPlanningCeremony(fleet.request(name))
            request = pb.GetPlanningCeremonyInstanceRequest(instance_id=f"{name}:S1")

            async def waits() -> bool:
                found = await frozen.GetPlanningCeremonyInstance(request)
                return bool(found.ceremony.status == "WAITING_FOR_HUMAN")

            await until(waits, "the gate is open")
            zombie.pause()
            await until(lambda: len(other.engine.partitions.mine()) == 2, "its partition has moved")
            await until(lambda: other.engine.partitions.readiness()["tables"] == "ok", "it is served again")
            await asked.DecideGate(
                pb.DecideGateRequest(
                    instance_id=f"{name}:S1", step_id="ask", approved=True, actor="anna", role="APPROVER"
                )
            )
            moved = (await asked.GetPlanningCeremonyInstance(request)).ceremony.version
            asking = frozen.GetPlanningCeremonyInstance(request, timeout=10)  # waits in the frozen process' socket
            await asyncio.sleep(0.2)
            zombie.resume()
            with refused("UNAVAILABLE", "unavailable") as seen:
                await asking
            assert int(seen.trailing["retry-after-ms"]) > 0
            await zombie.ready()
            await until(lambda: len(other.engine.partitions.mine()) == 1 and knows_two(other), "one has moved back")
            assert (await asked.GetPlanningCeremonyInstance(request)).ceremony.version >= moved
            assert (await frozen.GetPlanningCeremonyInstance(request)).ceremony.version >= moved


async def test_each_role_runs_alone_and_both_together_are_complete(kafka: KafkaServer, tmp_path: Path) -> None:
    """An engine and a bridge in separate processes: each is ready with its role's neighbours, and events come out."""
    # specification 22.3, 22.4
    async with Fleet(tmp_path, kafka.bootstrap, partitions=2) as fleet:
        bridge = await fleet.process(CEREMONY_ROLE="bridge")
        await bridge.ready()
        engine = await fleet.process(CEREMONY_ROLE="engine")
        await engine.ready()
        _, body = await asyncio.to_thread(http_get, f"http://127.0.0.1:{bridge.http_port}/readyz")
        found = {name: health["state"] for name, health in json.loads(body)["neighbours"].items()}
        assert found == {"log": "ok", "nats": "ok"}
        async with stub_at(engine.address) as stub:
            started = await stub.StartPlanningCeremony(fleet.request("alone", "merge_chain"))
        assert await accounted(fleet, [started.instance_id]) == {}
        bridge.must_live()
