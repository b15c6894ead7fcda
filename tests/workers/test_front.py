"""Two workers in front of one log: a call to either is answered by the owner, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.callers import FORWARDED
from streams.topics import OWNERS
from tests.bridge.grpc.world import refused
from tests.e2e.world import until
from tests.poison.shapes import good, shapes
from tests.services import KafkaServer
from tests.workers.fleet import Fleet, client_of, start_request, stub_of

pytestmark = [pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("fleet")
    async with Fleet(folder, kafka.bootstrap) as made:
        await asyncio.gather(made.start(), made.start())
        await made.shared()
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stubs(fleet: Fleet) -> AsyncIterator[tuple[Any, Any]]:
    async with stub_of(fleet.workers[0]) as first, stub_of(fleet.workers[1]) as second:
        yield first, second


async def test_any_worker_starts_and_reads_any_ceremony(fleet: Fleet, stubs: tuple[Any, Any]) -> None:
    """One worker starts it and both read it, whichever owns it; no answer is older than the start."""
    # specification 14.15
    for owner in fleet.workers:
        name = fleet.name_owned_by(owner)
        started = await stubs[0].StartPlanningCeremony(start_request(name))
        assert started.instance_id == f"{name}:S1" and started.position.offset > 0
        request = pb.GetPlanningCeremonyInstanceRequest(instance_id=started.instance_id, at_least=started.position)
        here, there = [await stub.GetPlanningCeremonyInstance(request) for stub in stubs]
        assert there.ceremony.version >= here.ceremony.version >= 1
        assert here.ceremony.position.partition == started.position.partition
        assert here.ceremony.position.offset >= started.position.offset


async def test_a_read_with_a_position_sees_the_write_before_it(fleet: Fleet, stubs: tuple[Any, Any]) -> None:
    """A position that is not folded within 2 s is UNAVAILABLE; one of another partition is the client's mistake."""
    # specification 14.7
    name = fleet.name_owned_by(fleet.workers[1])
    started = await stubs[0].StartPlanningCeremony(start_request(name))
    ahead = pb.LogPosition(partition=started.position.partition, offset=started.position.offset + 1000)
    get = stubs[0].GetPlanningCeremonyInstance
    with refused("UNAVAILABLE", "unavailable") as seen:
        await get(pb.GetPlanningCeremonyInstanceRequest(instance_id=started.instance_id, at_least=ahead))
    assert int(seen.trailing["retry-after-ms"]) > 0
    other = pb.LogPosition(partition=(started.position.partition + 1) % fleet.partitions, offset=0)
    with refused("INVALID_ARGUMENT", "position_differs"):
        await get(pb.GetPlanningCeremonyInstanceRequest(instance_id=started.instance_id, at_least=other))


async def test_operations_and_watching_reach_the_owner(fleet: Fleet) -> None:
    """A gate is decided through a worker that does not own the ceremony, while another client watches there."""
    # specification 14.15
    name = fleet.name_owned_by(fleet.workers[1])
    async with client_of(fleet.workers[0]) as client:
        instance_id = await client.start("approval", ceremony_id=name, story_id="S1", requested_by="anna")
        watched: list[pb.PlanningCeremonyInstance] = []

        async def watch() -> None:
            async for form in client.watch(instance_id):
                watched.append(form)  # noqa: PERF401 - the forms are looked at while they come

        watching = asyncio.create_task(watch())
        while not (found := await client.get(instance_id)) or not found.open_gates:
            await asyncio.sleep(0.05)
        gate = found.open_gates[0]
        after = await client.decide(
            instance_id, approved=True, actor="p0", role=gate.role, step_id=gate.step_id, visit=gate.visit
        )
        assert after.position.offset > found.position.offset
        while not watched or watched[-1].status not in ("COMPLETED", "FAILED"):
            found = await client.get(instance_id)
            assert found is not None
            for gate in found.open_gates:
                await client.decide(
                    instance_id,
                    approved=True,
                    actor="p9",
                    role=gate.role,
                    step_id=gate.step_id or None,
                    guard=gate.guard or None,
                )
            await asyncio.sleep(0.05)
        await asyncio.wait_for(watching, 10)
    assert [form.version for form in watched] == sorted({form.version for form in watched})


async def test_refusals_of_the_owner_pass_through_unchanged(fleet: Fleet, stubs: tuple[Any, Any]) -> None:
    name = fleet.name_owned_by(fleet.workers[1])
    await stubs[0].StartPlanningCeremony(start_request(name))
    again = start_request(name, "merge_chain")
    with refused("ALREADY_EXISTS", "already_exists"):
        await stubs[0].StartPlanningCeremony(again)
    with refused("NOT_FOUND", "unknown_instance"):
        await stubs[0].DecideGate(
            pb.DecideGateRequest(instance_id=fleet.name_owned_by(fleet.workers[1]) + ":S1", guard="g", actor="a")
        )
    with refused("NOT_FOUND", "definition_unknown"):
        await stubs[0].StartPlanningCeremony(start_request(fleet.name_owned_by(fleet.workers[1]), "nothing"))


async def test_a_forwarded_call_is_never_forwarded_again(fleet: Fleet, stubs: tuple[Any, Any]) -> None:
    """A worker that gets a forwarded call and is not the owner answers UNAVAILABLE."""
    # specification 14.15
    name = fleet.name_owned_by(fleet.workers[1])
    await stubs[1].StartPlanningCeremony(start_request(name))
    request = pb.GetPlanningCeremonyInstanceRequest(instance_id=f"{name}:S1")
    with refused("UNAVAILABLE", "unavailable") as seen:
        await stubs[0].GetPlanningCeremonyInstance(request, metadata=((FORWARDED, "1"),))
    assert int(seen.trailing["retry-after-ms"]) > 0


async def test_the_correlation_id_and_the_deadline_travel_with_the_call(fleet: Fleet, stubs: tuple[Any, Any]) -> None:
    """The id comes back in the metadata of the forwarded answer; a watch ends with its client's deadline."""
    name = fleet.name_owned_by(fleet.workers[1])
    call = stubs[0].StartPlanningCeremony(start_request(name), metadata=(("x-correlation-id", "corr-77"),))
    started = await call
    assert ("x-correlation-id", "corr-77") in tuple(await call.initial_metadata())
    got = await stubs[1].GetPlanningCeremonyInstance(
        pb.GetPlanningCeremonyInstanceRequest(instance_id=started.instance_id)
    )
    assert got.ceremony.correlation_id == "corr-77"
    watching = stubs[0].WatchPlanningCeremony(
        pb.WatchPlanningCeremonyRequest(instance_id=started.instance_id), timeout=1.0
    )
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in watching:
            pass
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_list_covers_all_workers(fleet: Fleet, stubs: tuple[Any, Any]) -> None:
    """Every worker gives the same order, exact totals, and pages that together are the whole."""
    # specification 14.15
    names = [fleet.name_owned_by(fleet.workers[number % 2], "list") for number in range(9)]
    for number, name in enumerate(names):
        request = start_request(name)
        request.story_id = "LIST"
        await stubs[number % 2].StartPlanningCeremony(request)
    whole = []
    for stub in stubs:
        listed = await stub.ListPlanningCeremonyInstances(
            pb.ListPlanningCeremonyInstancesRequest(story_id="LIST", limit=100)
        )
        assert listed.total_count == 9
        whole.append([one.instance_id for one in listed.ceremonies])
    assert whole[0] == whole[1] and sorted(whole[0]) == sorted(f"{name}:LIST" for name in names)
    pages: list[str] = []
    for offset in range(0, 12, 4):
        listed = await stubs[0].ListPlanningCeremonyInstances(
            pb.ListPlanningCeremonyInstancesRequest(story_id="LIST", limit=4, offset=offset)
        )
        assert listed.total_count == 9
        pages += [one.instance_id for one in listed.ceremonies]
    assert pages == whole[0]
    nothing = await stubs[1].ListPlanningCeremonyInstances(pb.ListPlanningCeremonyInstancesRequest(story_id="NOTHING"))
    assert nothing.total_count == 0 and not nothing.ceremonies


async def test_a_diagnosis_covers_all_workers(fleet: Fleet, stubs: tuple[Any, Any]) -> None:
    """Every worker reports that each partition is served, and counts the ceremonies of all."""
    # specification 14.15
    for owner in fleet.workers:
        await stubs[0].StartPlanningCeremony(start_request(fleet.name_owned_by(owner)))
    listed = await stubs[0].ListPlanningCeremonyInstances(pb.ListPlanningCeremonyInstancesRequest(limit=1))
    for stub in stubs:
        found = await stub.Diagnose(pb.DiagnoseRequest())
        assert [(one.partition, one.state) for one in found.partitions] == [
            (number, "served") for number in range(fleet.partitions)
        ]
        assert sum(found.verdicts.values()) == sum(found.statuses.values()) == listed.total_count
        assert not [finding for finding in found.findings if finding.code.startswith("partitions_")]


async def test_poison_among_the_heartbeats_ends_no_worker(fleet: Fleet, stubs: tuple[Any, Any]) -> None:
    """Each shape is found in the dead letters once, and calls reach their owner as before."""
    log, topic = fleet.workers[0].app.driver.log, f"{fleet.prefix}.{OWNERS}"
    bad = [
        await log.append(topic, 0, *shape.spoil(good(OWNERS, f"poisoned-{number}")))
        for number, shape in enumerate(shapes(OWNERS))
    ]

    async def aside() -> list[int]:
        found = await stubs[0].ListDeadLetters(pb.ListDeadLettersRequest(limit=100, topic_filter=topic))
        letters = [one for one in found.dead_letters if one.code == "heartbeat_undecodable"]
        return sorted(one.offset for one in letters) if len(letters) >= len(bad) else []

    assert await until(aside, "all are aside") == [position.offset for position in bad]
    for owner in fleet.workers:
        assert owner.failure is None
        started = await stubs[0].StartPlanningCeremony(start_request(fleet.name_owned_by(owner)))
        await stubs[1].GetPlanningCeremonyInstance(
            pb.GetPlanningCeremonyInstanceRequest(instance_id=started.instance_id)
        )
