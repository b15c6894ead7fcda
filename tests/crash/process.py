"""One worker process in small: the pipeline of `ceremony/build.py` on neighbours in memory.

`PartitionAssignment` and `Part` are the real ones. In place of Faust's streams each agent has a queue that keeps their
contract; gRPC and HTTP are left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from bridge.clock import HostClock
from bridge.nats.connection import NatsConnection
from ceremony.build import Membership, Pipeline, PipelineOptions, Ports
from ports.log import AgentSpec
from steps.agent import AgentFunction, Model
from steps.registry import all_kinds
from streams.metrics import process_metrics
from streams.topics import DEADLETTERS, prefixed
from streams.transport.partition.assignment import PartitionAssignment
from streams.transport.partition.batch import AgentGone, PartBatch
from streams.transport.partition.dead_letters import DeadLetterTopic
from streams.transport.partition.ownership import IsCurrent
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStores
from tests.crash.log import Broker, CrashBackend, CrashLog
from tests.crash.marks import Marks, MarksPort
from tests.crash.nats import Client, Server
from tests.crash.ray import Executor, RayPort
from tests.crash.world import Host, World

PREFIX = "c"
GROUP = "c.engine"
GRACE_SECONDS = 5.0
GIVE_UP_SECONDS = 5.0


@dataclass
class Surroundings:
    """The broker, NATS, the Ray executor and the store, which outlive every process."""

    world: World
    broker: Broker
    nats: Server
    ray: Executor
    answers: dict[str, Any] = field(default_factory=dict)
    """Replies of the engine, by the name of the call."""
    marks: Marks | None = None
    """The idempotency store, in the plays that have one."""

    @classmethod
    def fresh(cls, seed: int, partitions: int = 1, *, with_store: bool = False) -> Surroundings:
        world = World(seed)
        marks = Marks(world) if with_store else None
        return cls(world, Broker(world, partitions), Server(world), Executor(), marks=marks)


class LoopClock(HostClock):
    """The Clock port on a virtual loop, with the log's clock as the wall clock."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now

    def wall(self) -> float:
        return self._world.log_time() / 1000


class Batches:
    """The stream of one agent. Only the request for the next batch marks the last one as successful."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[PartBatch] = asyncio.Queue()
        self._open: PartBatch | None = None

    def __aiter__(self) -> AsyncIterator[PartBatch]:
        return self

    async def __anext__(self) -> PartBatch:
        self.hand_back(None)
        while True:
            batch = await self.queue.get()
            if not batch.finished.done():  # otherwise its part is gone
                self._open = batch
                return batch

    def hand_back(self, failure: BaseException | None) -> None:
        batch, self._open = self._open, None
        if batch is not None:
            batch.finish(failure)


class Process:
    """One process. Its `main` task ends after `stop`, once everything has stopped in good order."""

    def __init__(self, around: Surroundings, *, counted: bool = True) -> None:
        self.around = around
        self.host = Host(around.world, counted=counted)
        self.failures: list[str] = []
        self.partitions = around.broker.partitions
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self.clock = LoopClock(around.world)
        self.log = CrashLog(around.broker, self.host, self.clock)
        self.nats = NatsConnection(
            "nats://memory",
            self.clock,
            new_client=lambda: Client(around.nats, self.host),  # type: ignore[arg-type,return-value]
        )
        self.pipeline = self._pipeline()
        self._streams = {spec.name: Batches() for spec, _ in self.pipeline.agents}
        self.assignment = self._assignment()
        self.main = self.spawn(self._run(), "main")

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self.host.loop.create_task(coroutine, name=name)

    def stop(self) -> None:
        """Ask for a clean end, as SIGTERM does."""
        self._stop.set()

    @property
    def problems(self) -> list[str]:
        """Errors in the process. There should be none."""
        found = [*self.failures, *self.host.loop.errors]
        if self.main.done() and not self.main.cancelled() and (error := self.main.exception()) is not None:
            found.append(f"main: {error!r}")
        return found

    # ---- wiring

    def _pipeline(self) -> Pipeline:
        marks = self.around.marks
        store = None if marks is None else MarksPort(marks, self.host)
        ports = Ports(self.clock, self.log, RayPort(self.around.ray, self.host), self.nats, store)
        options = PipelineOptions(
            prefix=PREFIX,
            partitions=self.partitions,
            model=Model("http://vllm", "model"),
            publish_subjects=("ceremony.>",),
            agent_concurrency=16,
            ray_call_timeout_seconds=10.0,
            nats_in_flight=512,
            take_over_grace_seconds=GRACE_SECONDS,
            max_lag=0,
        )
        membership = Membership(
            unserved=lambda: self.assignment.unserved,
            held=lambda: range(self.partitions),
            fresh=lambda: True,
        )
        return Pipeline(ports, options, membership, all_kinds(), process_metrics())

    def _assignment(self) -> PartitionAssignment:
        return PartitionAssignment(
            [spec for spec, _ in self.pipeline.agents],
            partitions=self.partitions,
            clock=self.clock,
            new_backend=self._backend,
            deliver=self._deliver,
            dead_letters=DeadLetterTopic(prefixed(PREFIX, DEADLETTERS), self.partitions),
            cache=RowCache(),
            stores=MemoryStores(),
            fail=lambda error: self.failures.append(f"worker failed: {error!r}"),
        )

    def _backend(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> CrashBackend:
        return CrashBackend(self.around.broker, self.host, GROUP, spec, number, is_current)

    async def _deliver(self, batch: PartBatch) -> None:
        self._streams[batch._part.spec.name].queue.put_nowait(batch)

    async def _supervise(self, act: AgentFunction, stream: Batches) -> None:
        """Run an agent for ever. An error it raises is the failure of the batch it had open."""
        while True:
            try:
                await act(stream)
            except asyncio.CancelledError:
                stream.hand_back(AgentGone("cancelled"))
                raise
            except Exception as failure:  # noqa: BLE001 - as the transport's `supervised`
                stream.hand_back(failure)

    # ---- running

    async def _run(self) -> None:
        broker = self.around.broker
        await self.nats.start()
        await self.host.call(0.01, lambda: broker.members.update({GROUP: self.host}))
        for spec, act in self.pipeline.agents:
            self._begin(self._supervise(act, self._streams[spec.name]), spec.name)
        assigned = [(name, number) for name in self.assignment.specs for number in range(self.partitions)]
        self.assignment.take_over(assigned, self._is_current())
        await self.pipeline.nats_out.start()
        await self.pipeline.nats_in.start()
        timers = self._begin(self.pipeline.timers.run(), "timers")
        await self._stop.wait()
        timers.cancel()
        await self.pipeline.nats_in.stop()
        await self.pipeline.nats_out.stop()
        await self.assignment.give_up(GIVE_UP_SECONDS)
        await self.nats.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def _is_current(self) -> Callable[[], bool]:
        members = self.around.broker.members
        return lambda: members.get(GROUP) is self.host

    def _begin(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = self.clock.spawn(coroutine, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(f"{task.get_name()}: {error!r}")
