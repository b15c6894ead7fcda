"""Many waiting ceremonies with large outputs, on a worker that is killed and started again; and its memory.

Commands are appended to the log as the front and the agents would: each start is followed by the outcome of its first
step, so that no row needs an input as large as its output. The agent's own outcome comes too late and changes nothing.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from aiokafka import TopicPartition
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

from bridge.clock import HostClock
from steps.registry import all_kinds
from streams.topics import COMMANDS, prefixed
from streams.topology import topics
from streams.transport.kafka.log import KafkaLog
from streams.transport.kafka.wire import append_batches
from streams.transport.partition.backend import NewRecord
from tables.commands import AnyCommand, GateDecision, PutDefinition, Start, StepOutcome, encode_command
from tables.definition import Definition
from tables.definitions.loader import load
from tests.benchmarks.processes import MeasuredNats
from tests.faults.world import WorkerServer
from tests.pressure.storm import memory_of
from tests.services import free_port, running

LOOK_SECONDS = 0.5
# Ceremonies appended before the log has to acknowledge them: four megabytes.
BATCH = 200
# Ceremonies that are approved by a call instead of a command in the log.
ASKED = 20


@dataclass(frozen=True, slots=True)
class Waiting:
    """Number and size of the ceremonies that a worker holds."""

    ceremonies: int
    output: int = 20 * 1024
    """Bytes of each ceremony's outputs, which hardly compress."""
    partitions: int = 12
    patience: float = 1800.0
    """Seconds for each of these: all wait, the worker is back, all have ended."""


@dataclass(slots=True)
class Waited:
    """Measurements of a run."""

    ceremonies: int
    ended: int = 0
    """Ceremonies in the tables at the end, in their last state."""
    seconds_until_all_waited: float = 0.0
    seconds_until_ready: list[float] = field(default_factory=list)
    """From the start of the process of each worker that followed a kill."""
    seconds_until_all_ended: float = 0.0
    peak_mib: list[float] = field(default_factory=list)
    """VmHWM of each worker's process."""
    disk_mib: float = 0.0
    """Files below CEREMONY_STATE_DIR when all waited."""


def wait_and_recover(waiting: Waiting, folder: Path, servers: str, **settings: Any) -> Waited:
    """Run on workers of its own, one after the other. Raises AssertionError if a stage takes too long."""
    prefix = f"waiting-{free_port()}"
    with running(MeasuredNats(folder / "nats", sync_always=False)) as nats:
        environment = {
            "CEREMONY_LOG": f"kafka://{servers}",
            "CEREMONY_TOPIC_PREFIX": prefix,
            "CEREMONY_PARTITIONS": waiting.partitions,
            "CEREMONY_STATE_DIR": folder / "state",
            "NATS_URL": nats.url,
            "RAY_EXECUTOR_URL": f"127.0.0.1:{free_port()}",
            "READINESS_REQUIRES": "log,tables",
            "WORKER_ID": "waiting-1",
            "LOG_LEVEL": "WARNING",
            **settings,
        }
        worker = WorkerServer(folder / "worker", environment)
        try:
            return asyncio.run(_Run(waiting, worker, servers, prefix, folder / "state").run())
        finally:
            worker.stop()


class _Run:
    """One run under way."""

    def __init__(self, waiting: Waiting, worker: WorkerServer, servers: str, prefix: str, state: Path) -> None:
        self._waiting = waiting
        self._worker = worker
        self._log = KafkaLog([servers], HostClock())
        self._prefix = prefix
        self._state = state
        self._definition = _definition()
        self._result = Waited(waiting.ceremonies)
        self._ids = [f"waiting-{number}:S" for number in range(waiting.ceremonies)]

    async def run(self) -> Waited:
        result = self._result
        await self._log.start()
        try:
            await self._log.create(topics(self._prefix, self._waiting.partitions))
            await asyncio.to_thread(self._worker.start)
            began = time.monotonic()
            await self._append_all(self._fill())
            await self._until(self._all_wait, "all wait")
            result.seconds_until_all_waited = _since(began)
            result.disk_mib = _mib_below(self._state)
            await self._kill_and_restart()
            began = time.monotonic()
            await self._ask()
            await self._append_all(self._decide(self._ids[ASKED : len(self._ids) // 2]))
            await self._kill_and_restart()
            await self._append_all(self._decide(self._ids[len(self._ids) // 2 :]))
            await self._until(self._all_ended, "all have ended")
            result.seconds_until_all_ended = _since(began)
            self._note_memory()
        finally:
            await self._log.stop()
        return result

    # -- commands

    def _fill(self) -> Iterator[AnyCommand]:
        for number, instance_id in enumerate(self._ids):
            ceremony_id = instance_id.partition(":")[0]
            yield Start(
                instance_id=instance_id,
                ceremony_id=ceremony_id,
                story_id="S",
                definition_name=self._definition.name,
                definition_hash=self._definition.hash,
                correlation_id=instance_id,
                requested_by="pressure",
                inputs={"topic": {}, "ceremony_id": ceremony_id, "story_id": "S"},
            )
            found = base64.b64encode(random.Random(number).randbytes(3 * self._waiting.output // 4)).decode()
            yield StepOutcome(
                instance_id=instance_id,
                step_id="gather",
                attempt=1,
                outcome="completed",
                output={"sources": ["topic"], "aggregation_type": "merge", "aggregated_result": {"found": found}},
                size=len(found),
            )

    def _decide(self, ids: list[str]) -> Iterator[AnyCommand]:
        for instance_id in ids:
            yield GateDecision(
                instance_id=instance_id, command_id=f"yes-{instance_id}", gate="ask", approved=True, actor="anna"
            )

    async def _append_all(self, commands: Iterator[AnyCommand]) -> None:
        partitions, topic = self._waiting.partitions, prefixed(self._prefix, COMMANDS)
        definition = self._definition
        put = NewRecord(
            definition.hash.encode(), encode_command(PutDefinition(hash=definition.hash, text=definition.text))
        )
        lists = [[put] for _ in range(partitions)]
        for number, command in enumerate(commands, start=1):
            key = command.instance_id.encode()
            lists[self._log.partition_of(key, partitions)].append(NewRecord(key, encode_command(command)))
            if number % (2 * BATCH) == 0:
                await self._append(topic, lists)
        await self._append(topic, lists)

    async def _append(self, topic: str, lists: list[list[NewRecord]]) -> None:
        acks = []
        for partition, records in enumerate(lists):
            if records:
                acks += append_batches(self._log.producer, TopicPartition(topic, partition), records)
                records.clear()
        await asyncio.gather(*acks)

    async def _ask(self) -> None:
        async with AsyncPlanningCeremonyClient(self._worker.address) as client:
            for instance_id in self._ids[:ASKED]:
                await client.decide(instance_id, approved=True, actor="anna", role="", step_id="ask")

    # -- observation

    async def _kill_and_restart(self) -> None:
        self._note_memory()
        self._worker.kill()
        began = time.monotonic()
        self._worker.launch()
        await asyncio.to_thread(self._worker.wait_ready, self._waiting.patience)
        self._result.seconds_until_ready.append(_since(began))

    def _note_memory(self) -> None:
        self._result.peak_mib.append(memory_of(self._worker.pid or 0)["VmHWM"])

    async def _until(self, holds: Any, what: str) -> None:
        deadline = time.monotonic() + self._waiting.patience
        while not await holds():
            assert self._worker.pid is not None, f"the worker ended: {self._worker.last_words()}"
            assert time.monotonic() < deadline, f"not within {self._waiting.patience:.0f} s: {what}"
            await asyncio.sleep(LOOK_SECONDS)

    async def _all_wait(self) -> bool:
        return await self._metric("ceremony_events_total", 'subject="ceremony.gate.opened"') >= self._waiting.ceremonies

    async def _all_ended(self) -> bool:
        ended = await self._metric("ceremony_ended_total", 'status="COMPLETED"')
        if ended < self._waiting.ceremonies // 2:
            return False  # this worker's half is not done yet; a list, which looks at every row, can wait
        async with grpc.aio.insecure_channel(self._worker.address) as channel:
            stub: Any = PlanningCeremonyProcessorStub(channel)
            request = pb.ListPlanningCeremonyInstancesRequest(state_filter="APPROVED", limit=1)
            listed = await stub.ListPlanningCeremonyInstances(request, timeout=60)
        self._result.ended = listed.total_count
        return self._result.ended >= self._waiting.ceremonies

    async def _metric(self, name: str, label: str = "") -> float:
        """Return the sum of the series of this name that have the label."""
        text = await asyncio.to_thread(self._worker.metrics)
        labels = rf"\{{.*{re.escape(label)}.*\}}" if label else ""
        return sum(map(float, re.findall(rf"^{name}{labels} (\S+)", text, re.MULTILINE)))


def _definition() -> Definition:
    file = Path(__file__).with_suffix(".yaml")
    return load(file.read_text(encoding="utf-8"), file.name, all_kinds())


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _mib_below(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1024 / 1024, 1)
