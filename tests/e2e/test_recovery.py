"""A worker process that is killed, ended in order, or restarted after definitions were edited: nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient, PlanningCeremonyError
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.clock import HostClock
from ceremony.dev.ray_simulation import Knobs
from tests.e2e.world import (
    ENDED,
    INPUTS,
    SPECS,
    Message,
    RecordingRay,
    WorkerProcess,
    finish,
    messages,
    until,
    worker_settings,
)
from tests.services import KafkaServer, NatsServer, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.uncounted]
UNRULY = Knobs(latency=0.1, jitter=0.1, duplicate_rate=0.3, reorder_rate=0.3)
# Ceremonies of each definition in the run that is killed.
COUNT = 10


@dataclass
class Site:
    """Neighbours, and one worker process that tests kill."""

    nats: NatsServer
    worker: WorkerProcess
    client: AsyncPlanningCeremonyClient
    definitions: Path

    async def start(self, name: str, ceremony_id: str) -> str:
        return await self.client.start(
            name, ceremony_id=ceremony_id, story_id="S1", requested_by="anna", inputs=INPUTS[name]
        )

    async def restart(self) -> None:
        self.worker.start()
        await self.worker.ready()

    async def get(self, instance_id: str) -> pb.PlanningCeremonyInstance:
        found = await self.client.get(instance_id)
        assert found is not None, f"{instance_id} is unknown"
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "kafka", "rocks"])
async def site(
    request: pytest.FixtureRequest, kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """A site on the embedded log, on Kafka, and on Kafka with the rows on disk."""
    folder = tmp_path_factory.mktemp("recovery")
    definitions = Path(copytree(SPECS, folder / "definitions"))
    url = f"sqlite://{folder}/log.db" if request.param == "sqlite" else f"kafka://{kafka.bootstrap}"
    async with contextlib.AsyncExitStack() as stack:
        nats = stack.enter_context(running(NatsServer(folder / "nats")))
        ray = RecordingRay(grpc_address="127.0.0.1:0", nats_url=nats.url, clock=HostClock(), knobs=UNRULY)
        await stack.enter_async_context(ray)
        told = worker_settings(
            url,
            nats.url,
            ray.url,
            CEREMONIES_DIR=definitions,
            CEREMONY_TOPIC_PREFIX=f"recovery-{uuid4().hex[:8]}",
            WORKER_ID="recovery-1",
            CEREMONY_STATE="rocks" if request.param == "rocks" else "memory",
            CEREMONY_STATE_DIR=folder / "state",
        )
        worker = WorkerProcess(folder, told)
        stack.callback(worker.kill)
        worker.start()
        await worker.ready()
        client = await stack.enter_async_context(AsyncPlanningCeremonyClient(worker.address))
        yield Site(nats, worker, client, definitions)


async def attend(site: Site, instance_id: str) -> pb.PlanningCeremonyInstance:
    """Approve gates as a person does who tries again while the worker is away."""
    while True:
        try:
            return await finish(site.client, instance_id, 90)
        except PlanningCeremonyError as error:
            if error.status.name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION"):
                raise
        await asyncio.sleep(0.2)


def doubled(names: Iterable[Any]) -> list[Any]:
    return [name for name, count in Counter(names).items() if count > 1]


async def test_a_killed_worker_loses_nothing_and_sends_nothing_twice(site: Site) -> None:
    """After SIGKILL under load and a restart all ceremonies end, and each effect id is there once.

    Half of the gates are decided only after the restart, so not all ceremonies can end before it.
    """
    # specification 16.7, 18.1
    names = ("backlog_review", "merge_chain", "refinement")
    starts = [site.start(name, f"kill-{name}-{n}") for name in names for n in range(COUNT)]
    ids = await asyncio.gather(*starts)
    site.worker.must_live()
    people = [asyncio.create_task(attend(site, instance_id)) for instance_id in ids[COUNT // 2 :]]
    await until(lambda: some_ended(site, 5), "some have ended, and many have not")
    site.worker.kill()
    seen = {m.envelope["payload"]["instance_id"] for m in await messages(site.nats.url) if ended(m)}
    assert len(seen) < len(ids), "the kill came too late to prove anything"
    await site.restart()
    people += [asyncio.create_task(attend(site, instance_id)) for instance_id in ids[: COUNT // 2]]
    ends = await asyncio.wait_for(asyncio.gather(*people), 90)
    assert Counter(found.status for found in ends) == {"COMPLETED": len(ids)}
    await until(lambda: some_ended(site, len(ids)), "every end was published")
    found = await messages(site.nats.url)
    assert doubled(message.envelope["idempotency_key"] for message in found) == []
    for row in ends:
        check_story(row, [m for m in found if m.envelope["payload"].get("instance_id") == row.instance_id])


def ended(message: Message) -> bool:
    return message.subject in {f"ceremony.{status.lower()}" for status in ENDED}


async def some_ended(site: Site, count: int) -> bool:
    site.worker.must_live()
    return sum(map(ended, await messages(site.nats.url))) >= count


def check_story(row: pb.PlanningCeremonyInstance, told: list[Message]) -> None:
    """Check the order: started, a path of transitions, each step COMPLETED once per attempt, and the end."""
    assert (told[0].subject, told[-1].subject) == ("ceremony.started", "ceremony.completed"), row.instance_id
    moves = [m.envelope["payload"] for m in told if m.subject == "ceremony.transition.applied"]
    assert [move["to_state"] for move in moves[:-1]] == [move["from_state"] for move in moves[1:]]
    assert moves[-1]["to_state"] == row.current_state
    concluded = [m.envelope["payload"] for m in told if m.subject == "ceremony.step.executed"]
    completed = [(one["step_id"], one["attempt"]) for one in concluded if one["status"] == "COMPLETED"]
    assert doubled(completed) == []
    assert {step for step, _ in completed} == set(row.step_status)


async def test_a_clean_restart_keeps_reads_and_pinned_definitions(site: Site) -> None:
    """SIGTERM ends with 0, and Get and List answer as before.

    A definition edited meanwhile does not affect running ceremonies, although the old file is gone. Later starts use
    the new one.
    """
    # specification 1.2, 18.8
    old = await site.start("approval", "edit-old")
    await until(lambda: waits(site, old), "the gate is open")
    file = site.definitions / "approval.yaml"
    file.write_text(file.read_text().replace("APPROVED", "AGREED"))
    before = await site.client.list(limit=1000)
    assert await asyncio.to_thread(site.worker.terminate) == 0, site.worker.last_words()
    await site.restart()
    after = await site.client.list(limit=1000)
    assert after.total_count == before.total_count > 0
    for ceremony in (*after.ceremonies, *before.ceremonies):
        ceremony.ClearField("position")  # the position up to which the log was folded, which moves on
    assert list(after.ceremonies) == list(before.ceremonies)
    new = await site.start("approval", "edit-new")
    rows = [await attend(site, instance_id) for instance_id in (old, new)]
    assert [row.current_state for row in rows] == ["APPROVED", "AGREED"]
    assert rows[0].definition_hash != rows[1].definition_hash


async def waits(site: Site, instance_id: str) -> bool:
    return bool((await site.get(instance_id)).open_gates)
