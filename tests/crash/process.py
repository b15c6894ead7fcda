"""One worker process in small: everything of `ceremony/worker.py` that works on ceremonies, on in-memory neighbours.

The same parts are wired in the same order: ceremony agent, step agents, timers, engine front, bridges,
`PartitionAssignment`, `Part`. In place of Faust's streams stands a queue for each agent that keeps their contract;
gRPC and HTTP are left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from bridge.clock import HostClock
from bridge.nats.connection import NatsConnection
from bridge.nats.events import EventsBridge
from bridge.nats.outbound import NatsOutbound
from bridge.nats.responses import AgentResponses
from ports.log import AgentSpec
from steps.agent import AgentPorts, Model
from steps.reading import Wiring
from steps.registry import all_kinds, step_agents
from streams.ceremony_agent import CeremonyAgent
from streams.engine import Engine
from streams.log_clock import LogClock
from streams.metrics import process_metrics
from streams.timers import Timers
from streams.topics import COMMANDS, CORRELATION_ID, DEADLETTERS, prefixed
from streams.topology import AgentFunction, PartitionListener, agents
from streams.transport.partition.assignment import IsCurrent, PartitionAssignment
from streams.transport.partition.batch import AgentGone, PartBatch
from streams.transport.partition.dead_letters import DeadLetters
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStores
from tests.crash.log import Broker, CrashBackend, CrashLog
from tests.crash.nats import Client, Server
from tests.crash.ray import Executor, RayPort
from tests.crash.world import Host, World

PREFIX = "c"
GROUP = "c.engine"
GRACE_SECONDS = 5.0
GIVE_UP_SECONDS = 5.0


@dataclass
class Surroundings:
    """What outlives every process."""

    world: World
    broker: Broker
    nats: Server
    ray: Executor
    answers: dict[str, Any] = field(default_factory=dict)
    """What the front answered, by the name of the call."""

    @classmethod
    def fresh(cls, seed: int, partitions: int = 1) -> Surroundings:
        world = World(seed)
        return cls(world, Broker(world, partitions), Server(world), Executor())


class LoopClock(HostClock):
    """The Clock port on a virtual loop; the wall clock is the log's."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now

    def wall(self) -> float:
        return self._world.log_time() / 1000


class Batches:
    """The stream of one agent: asking for the next batch is the success of the last, and nothing else is."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[PartBatch] = asyncio.Queue()
        self._open: PartBatch | None = None

    def __aiter__(self) -> AsyncIterator[PartBatch]:
        return self

    async def __anext__(self) -> PartBatch:
        self.hand_back(None)
        while True:
            batch = await self.queue.get()
            if not batch.finished.done():  # else its part has gone
                self._open = batch
                return batch

    def hand_back(self, failure: BaseException | None) -> None:
        batch, self._open = self._open, None
        if batch is not None:
            batch.finish(failure)


class Process:
    """`run` is its main coroutine; it returns when `stop` was asked for and everything has stopped in good order."""

    def __init__(self, around: Surroundings, *, counted: bool = True) -> None:
        self.around = around
        self.host = Host(around.world, counted=counted)
        self.failures: list[str] = []
        self.partitions = around.broker.partitions
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self.clock = LoopClock(around.world)
        self.log = CrashLog(around.broker, self.host, self.clock)
        self._log_clock = LogClock(self.clock)
        self.kinds = all_kinds()
        self.nats = NatsConnection(
            "nats://memory",
            self.clock,
            new_client=lambda: Client(around.nats, self.host),  # type: ignore[arg-type,return-value]
        )
        self.engine = Engine(
            log=self.log,
            unserved=lambda: self.owner.unserved,
            clock=self.clock,
            log_clock=self._log_clock,
            kinds=self.kinds,
            prefix=PREFIX,
            partitions=self.partitions,
            metrics=process_metrics(),
        )
        self.timers = Timers(self.clock, self._log_clock, self.engine.commands.send, grace_seconds=GRACE_SECONDS)
        self.engine.timers = self.timers
        self._streams: dict[str, Batches] = {}
        self._functions: dict[str, AgentFunction] = {}
        self.owner = self._owner()
        self.nats_out = EventsBridge(self.log, self.nats, self.clock, prefix=PREFIX)
        self.nats_in = AgentResponses(self.log, self.nats, self.clock, prefix=PREFIX, partitions=self.partitions)
        self.main = self.spawn(self._run(), "main")

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self.host.loop.create_task(coroutine, name=name)

    def stop(self) -> None:
        """SIGTERM."""
        self._stop.set()

    @property
    def problems(self) -> list[str]:
        """What went wrong in it, that nothing should have."""
        found = [*self.failures, *self.host.loop.errors]
        if self.main.done() and not self.main.cancelled() and (error := self.main.exception()) is not None:
            found.append(f"main: {error!r}")
        return found

    # ---- wiring

    def _owner(self) -> PartitionAssignment:
        ceremony = CeremonyAgent(self.kinds, PREFIX, self._log_clock, self.engine.commands.replies.expects)
        hearers = PartitionListener(self.engine.taken, self.engine.applied, self.engine.lost)
        specs = []
        for spec, function in agents(PREFIX, ceremony, hearers, step_agents(self._agent_ports())):
            specs.append(spec)
            self._streams[spec.name] = Batches()
            self._functions[spec.name] = function
        return PartitionAssignment(
            specs,
            partitions=self.partitions,
            clock=self.clock,
            new_backend=self._backend,
            deliver=self._deliver,
            dead_letters=DeadLetters(prefixed(PREFIX, DEADLETTERS), self.partitions),
            cache=RowCache(),
            stores=MemoryStores(),
            fail=lambda error: self.failures.append(f"worker failed: {error!r}"),
        )

    def _agent_ports(self) -> AgentPorts:
        return AgentPorts(
            Wiring(prefixed(PREFIX, COMMANDS), CORRELATION_ID, self._log_clock.now),
            self.clock,
            RayPort(self.around.ray, self.host),
            NatsOutbound(self.nats, self.clock),
            Model("http://vllm", "model"),
        )

    def _backend(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> CrashBackend:
        return CrashBackend(self.around.broker, self.host, GROUP, spec, number, is_current)

    async def _deliver(self, batch: PartBatch) -> None:
        self._streams[batch._part.spec.name].queue.put_nowait(batch)

    async def _act(self, name: str) -> None:
        """Run an agent; what it raises is the failure of the batch it had open, and it begins anew."""
        stream = self._streams[name]
        while True:
            try:
                await self._functions[name](stream)
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
        for name in self._streams:
            self._begin(self._act(name), name)
        assigned = [(name, number) for name in self.owner.specs for number in range(self.partitions)]
        await self.owner.take_over(assigned, self._is_current())
        await self.nats_out.start()
        await self.nats_in.start()
        timers = self._begin(self.timers.run(), "timers")
        await self._stop.wait()
        timers.cancel()
        await self.nats_in.stop()
        await self.nats_out.stop()
        await self.owner.give_up(GIVE_UP_SECONDS)
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
