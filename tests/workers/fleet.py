"""Several workers on one real Kafka and one real NATS, and the questions of tests to them.

Workers run in the test's own loop (`Fleet.start`) or as processes that can be killed (`Fleet.process`). There is no Ray
executor: the ceremonies of these tests need none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import grpc.aio
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

from ceremony.settings import Settings
from ceremony.worker import Worker
from tests.bridge.nats.world import client, stored
from tests.contract.asyncapi import validate_sent
from tests.e2e.world import INPUTS, NO_RETRIES, WorkerProcess, until, worker_settings
from tests.services import NatsServer

PARTITIONS = 6
# Messages of each subject that are validated: a load sends thousands of one shape.
VALIDATED = 100


def start_request(
    ceremony_id: str, definition: str = "approval", inputs: Mapping[str, Any] | None = None
) -> pb.StartPlanningCeremonyRequest:
    request = pb.StartPlanningCeremonyRequest(
        ceremony_id=ceremony_id, story_id="S1", definition_name=definition, requested_by="anna"
    )
    given = INPUTS.get(definition, {}) if inputs is None else inputs
    if given:
        request.inputs_json.update(given)
    return request


class Fleet:
    """Workers with a NATS and names of their own on the Kafka: `async with Fleet(folder, bootstrap) as fleet:`."""

    def __init__(self, folder: Path, bootstrap: str, *, partitions: int = PARTITIONS, **more: Any) -> None:
        self.folder = folder
        self.partitions = partitions
        self.prefix = f"w{uuid4().hex[:8]}"
        self.nats = NatsServer(folder / "nats")
        self.log_url = f"kafka://{bootstrap}"
        self.workers: list[Worker] = []
        self.processes: list[WorkerProcess] = []
        self._more = more
        self._stack = contextlib.AsyncExitStack()
        self._stacks: dict[int, contextlib.AsyncExitStack] = {}

    def settings(self, **more: Any) -> dict[str, Any]:
        return worker_settings(
            self.log_url,
            self.nats.url,
            "127.0.0.1:1",
            CEREMONY_PARTITIONS=self.partitions,
            CEREMONY_TOPIC_PREFIX=self.prefix,
            READINESS_REQUIRES="log,tables,nats",
            **{**self._more, **more},
        )

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self.nats.start)
        self._stack.callback(self.nats.kill)
        async with client(self.nats.url) as link:  # the fleet's agents make it elsewhere
            await link.jetstream().add_stream(name="AGENT_RESPONSES", subjects=["agent.response.>"])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
        await asyncio.gather(*(self.stop(worker) for worker in list(self.workers)))
        try:
            if kind is None and self.nats.pid is not None:
                await self._validate_sent()
        finally:
            await self._stack.aclose()

    async def _validate_sent(self) -> None:
        """Check the first messages of each subject against the AsyncAPI document."""
        # specification 16.6
        seen: Counter[str] = Counter()
        for message in await stored(self.nats.url):
            seen[message.subject] += 1
            if seen[message.subject] <= VALIDATED:
                validate_sent(message.subject, message.headers or {}, message.data)

    # -- workers

    async def start(self, **more: Any) -> Worker:
        """Start one more worker in this loop; return before it is ready."""
        stack = contextlib.AsyncExitStack()
        worker = await stack.enter_async_context(Worker(Settings(**self.settings(**more))))
        self.workers.append(worker)
        self._stacks[id(worker)] = stack
        return worker

    async def stop(self, worker: Worker) -> None:
        self.workers.remove(worker)
        await self._stacks.pop(id(worker)).aclose()

    async def process(self, *, module: str = "ceremony_engine", **more: Any) -> WorkerProcess:
        """Start one more worker as a process; return before it is ready."""
        folder = self.folder / f"worker{len(self.processes)}"
        folder.mkdir()
        process = WorkerProcess(folder, self.settings(**more), module)
        self.processes.append(process)
        process.start()
        return process

    async def shared(self) -> None:
        """Wait until every worker is ready, owns its share and knows all others."""
        await until(lambda: all(worker.http.ready() for worker in self.workers), "every worker is ready")
        await until(self._shares, "every worker knows the owner of each partition")

    def _shares(self) -> bool:
        owned = sorted(number for worker in self.workers for number in worker.engine.partitions.mine())
        if owned != list(range(self.partitions)):
            return False
        try:
            return all(
                len(worker.directory.partitions_by_address())
                == len([one for one in self.workers if one.engine.partitions.mine()])
                for worker in self.workers
                if worker.directory is not None
            )
        except Exception:  # noqa: BLE001 - not known yet
            return False

    request = staticmethod(start_request)

    # -- owners

    def owner_of(self, instance_id: str) -> Worker:
        partition = self.workers[0].engine.partitions._log.partition_of(instance_id.encode(), self.partitions)
        return next(worker for worker in self.workers if partition in worker.engine.partitions.mine())

    def name_in(self, partition: int) -> str:
        """Return a ceremony id whose instance (story S1) lives in this partition."""
        return next(
            name
            for name in (f"p-{number}" for number in range(1000))
            if self.workers[0].engine.partitions._log.partition_of(f"{name}:S1".encode(), self.partitions) == partition
        )

    def name_owned_by(self, worker: Worker, prefix: str = "c") -> str:
        """Return a ceremony id whose instance (story S1) lives at this worker."""
        return next(
            name
            for name in (f"{prefix}-{uuid4().hex[:8]}" for _ in range(1000))
            if self.owner_of(f"{name}:S1") is worker
        )


@contextlib.asynccontextmanager
async def stub_at(address: str) -> AsyncIterator[Any]:
    """Return a stub without retries, so that a test sees the worker's own answer."""
    async with grpc.aio.insecure_channel(address, options=NO_RETRIES) as channel:
        yield PlanningCeremonyProcessorStub(channel)


def stub_of(worker: Worker) -> contextlib.AbstractAsyncContextManager[Any]:
    return stub_at(f"127.0.0.1:{worker.grpc.port}")


def client_of(worker: Worker) -> AsyncPlanningCeremonyClient:
    return AsyncPlanningCeremonyClient(f"127.0.0.1:{worker.grpc.port}")
