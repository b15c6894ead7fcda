"""A storm: many more starts at once than a worker can fold; all are followed to their end, with the worker's memory.

The front refuses starts above its limits; each refused start comes back after its hint, until it is accepted.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

from bridge.grpc.intake import read_all_wakeups
from tests.benchmarks.processes import MeasuredNats
from tests.faults.load import pause_after
from tests.faults.world import SPECS, WorkerServer
from tests.services import free_port, running

DEFINITION, ENDED_IN = "merge_chain", "MERGED"
# Deadline of a call: 20,000 callers in one process are slow themselves, all the more beside the worker they call.
CALL_SECONDS = 120.0
LOOK_SECONDS = 0.5
# The same start may be sent again after any of these.
AGAIN = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
OPTIONS = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))


@dataclass(frozen=True, slots=True)
class Storm:
    """Size and limits of a storm."""

    starts: int
    at_once: int = 20_000
    """Calls that wait for an answer, or for their next try."""
    channels: int = 4
    partitions: int = 4
    max_lag: int = 2_000
    patience: float = 900.0
    """Seconds until all has ended."""


@dataclass(frozen=True, slots=True)
class Weathered:
    """Measurements of a storm."""

    starts: int
    refused: int
    """Answers RESOURCE_EXHAUSTED; each start of them was accepted later."""
    without_hint: int
    other_answers: dict[str, int]
    found: int
    """Ceremonies in the tables at the end, in their last state."""
    ended: int
    """Ended ceremonies by the worker's own count."""
    seconds_starting: float
    seconds: float
    peak_mib: float
    """VmHWM of the worker's process."""
    rss_mib: float
    """VmRSS at the end."""
    worker_cpu: float
    """Seconds of processor time of the worker and of its callers, which share the cores."""
    callers_cpu: float


def weather(storm: Storm, folder: Path, log_url: str, **settings: Any) -> Weathered:
    """Run a storm on a worker of its own. Raises AssertionError if not all ceremonies end in time."""
    with running(MeasuredNats(folder / "nats", sync_always=False)) as nats:
        environment = {
            "CEREMONY_LOG": log_url,
            "CEREMONY_TOPIC_PREFIX": f"storm-{free_port()}",
            "CEREMONY_PARTITIONS": storm.partitions,
            "CEREMONY_MAX_LAG": storm.max_lag,
            "CEREMONIES_DIR": SPECS,
            "NATS_URL": nats.url,
            "RAY_EXECUTOR_URL": f"127.0.0.1:{free_port()}",
            "READINESS_REQUIRES": "log,tables",
            "LOG_LEVEL": "WARNING",
            **settings,
        }
        with running(WorkerServer(folder / "worker", environment)) as worker:
            return uvloop.run(_Run(storm, worker).run())


class _Run:
    """One storm under way."""

    def __init__(self, storm: Storm, worker: WorkerServer) -> None:
        self._storm = storm
        self._worker = worker
        self._answers: Counter[str] = Counter()
        self._without_hint = 0

    async def run(self) -> Weathered:
        storm = self._storm
        read_all_wakeups()  # else the callers are the slow part
        cpu = time.process_time()
        channels = [grpc.aio.insecure_channel(self._worker.address, options=OPTIONS) for _ in range(storm.channels)]
        stubs: list[Any] = [PlanningCeremonyProcessorStub(channel) for channel in channels]
        began = time.monotonic()
        numbers = iter(range(storm.starts))
        callers = min(storm.at_once, storm.starts)
        try:
            async with asyncio.timeout(storm.patience), asyncio.TaskGroup() as group:
                for caller in range(callers):
                    group.create_task(self._caller(stubs[caller % len(stubs)], numbers))
            started = time.monotonic() - began
            await self._all_ended(began)
            listed = await self._listed(stubs[0], began)
        finally:
            for channel in channels:
                await channel.close()
        memory = memory_of(self._worker.pid or 0)
        refused = self._answers.pop("RESOURCE_EXHAUSTED", 0)
        return Weathered(
            starts=storm.starts,
            refused=refused,
            without_hint=self._without_hint,
            other_answers=dict(self._answers),
            found=listed.total_count,
            ended=await self._ended(),
            seconds_starting=round(started, 1),
            seconds=round(time.monotonic() - began, 1),
            peak_mib=memory["VmHWM"],
            rss_mib=memory["VmRSS"],
            worker_cpu=cpu_of(self._worker.pid or 0),
            callers_cpu=round(time.process_time() - cpu, 1),
        )

    async def _caller(self, stub: Any, numbers: Iterator[int]) -> None:
        for number in numbers:
            request = pb.StartPlanningCeremonyRequest(
                ceremony_id=f"storm-{number}", story_id="S", definition_name=DEFINITION, requested_by="storm"
            )
            request.inputs_json.update({"payload": {"text": "x" * 80}})
            await self._until_accepted(stub, request)

    async def _until_accepted(self, stub: Any, request: pb.StartPlanningCeremonyRequest) -> None:
        while True:
            try:
                await stub.StartPlanningCeremony(request, timeout=CALL_SECONDS)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN:
                    raise
                refused = error
            self._answers[refused.code().name] += 1
            if refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._without_hint += "retry-after-ms" not in dict(refused.trailing_metadata() or ())
            await asyncio.sleep(pause_after(refused))

    async def _all_ended(self, began: float) -> None:
        while (ended := await self._ended()) < self._storm.starts:
            left = self._storm.patience - (time.monotonic() - began)
            assert left > 0, f"{ended} of {self._storm.starts} have ended after {self._storm.patience:.0f} s"
            assert self._worker.pid is not None, f"the worker ended: {self._worker.last_words()}"
            await asyncio.sleep(LOOK_SECONDS)

    async def _listed(self, stub: Any, began: float) -> pb.ListPlanningCeremonyInstancesResponse:
        """List, again if it took too long: a list looks at every row, and the last events go out meanwhile."""
        request = pb.ListPlanningCeremonyInstancesRequest(state_filter=ENDED_IN, limit=1)
        while True:
            try:
                found: pb.ListPlanningCeremonyInstancesResponse = await stub.ListPlanningCeremonyInstances(
                    request, timeout=60
                )
                return found
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN or time.monotonic() - began > self._storm.patience:
                    raise
                self._answers[f"List: {error.code().name}"] += 1
                await asyncio.sleep(pause_after(error))

    async def _ended(self) -> int:
        text = await asyncio.to_thread(self._worker.metrics)
        found = re.findall(r'^ceremony_ended_total\{.*status="COMPLETED"\} (\S+)', text, re.MULTILINE)
        return int(sum(map(float, found)))


def memory_of(pid: int) -> dict[str, float]:
    """Return VmHWM (peak) and VmRSS of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: round(int(fields[name].split()[0]) / 1024, 1) for name in ("VmHWM", "VmRSS")}


def cpu_of(pid: int) -> float:
    """Return user and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 1)
