"""The root: builds a worker from its settings, and starts and stops its parts in order.

async with Worker(settings) as worker:
await worker.ended()  # returns when a part has failed for good
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import structlog

from bridge.clock import HostClock, new_id
from bridge.dead_letters import DeadLetters
from bridge.definitions import DefinitionFolder
from bridge.grpc.server import GrpcServer, Sharing
from bridge.grpc.servicer import Servicer
from bridge.http.server import HttpServer
from bridge.nats.connection import NatsConnection
from bridge.nats.events import EventsBridge
from bridge.nats.outbound import NatsOutbound
from bridge.nats.responses import AgentResponses
from bridge.ray.executor import RayExecutorClient
from ceremony.settings import Settings
from ceremony.version import VERSION
from ports.clock import Clock
from ports.errors import Unreachable
from ports.log import LogFailed, LogUnavailable
from steps.agent import BACKSTOP_SECONDS, AgentPorts, Model
from steps.publish import subject_problems
from steps.reading import Wiring
from steps.registry import all_kinds, step_agents
from streams.ceremony_agent import CeremonyAgent
from streams.engine import Engine
from streams.log_clock import LogClock
from streams.metrics import process_metrics
from streams.timers import Timers
from streams.topics import COMMANDS, CORRELATION_ID, prefixed
from streams.topology import CEREMONY, PartitionListener, agents, topics
from streams.transport.app import CeremonyApp, create_app
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStores, Stores
from streams.worker_directory import WorkerDirectory
from tables.definition import Definition
from tables.errors import Problem

log = structlog.get_logger(__name__)

PROBE_SECONDS = 2.0
"""Between looks at the neighbours for readiness."""
STOP_SECONDS = 8.0
"""For a stop in good order, which takes less than one as long as the neighbours answer."""
EVERY_INTERFACE = frozenset({"0.0.0.0", "[::]", "::", "*", ""})  # noqa: S104 - where nobody can be reached
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 4.0
"""Between attempts to reach a log that is not there yet."""


class Worker:
    """Everything of one process: agents, timers, front and bridges. `async with` starts and stops it."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or HostClock()
        self.kinds = all_kinds()
        self.metrics = process_metrics()
        self.metrics.build.labels(VERSION).set(1)
        self.failure: BaseException | None = None
        self.halfway = False
        self._log_clock = LogClock(self.clock)
        self._ended = asyncio.Event()
        self._telling: list[asyncio.Task[Any]] = []
        self._stack = contextlib.AsyncExitStack()
        self._ray_state = "not asked yet"
        self.definitions = DefinitionFolder(settings.ceremonies_dir, self.kinds, [self._server_rule])
        self.nats = NatsConnection(settings.nats_url, self.clock)
        self.outbound = NatsOutbound(self.nats, self.clock)
        self.ray = RayExecutorClient(settings.ray_executor_url, call_timeout_seconds=settings.ray_call_timeout_seconds)
        self.app = self._new_app()
        self.engine = Engine(
            log=self.app.driver.log,
            unserved=lambda: self.app.unserved,
            held=lambda: self.app.held(CEREMONY),
            fresh=lambda: self.app.fresh,
            clock=self.clock,
            log_clock=self._log_clock,
            kinds=self.kinds,
            prefix=settings.topic_prefix,
            partitions=settings.partitions,
            metrics=self.metrics,
            max_lag=settings.max_lag,
        )
        self.timers = Timers(
            self.clock, self._log_clock, self.engine.commands.send, grace_seconds=settings.take_over_grace_seconds
        )
        self.engine.timers = self.timers
        self._attach_agents()
        self.nats_out = EventsBridge(
            self.app.driver.log,
            self.nats,
            self.clock,
            prefix=settings.topic_prefix,
            window=settings.nats_in_flight,
        )
        self.nats_in = AgentResponses(
            self.app.driver.log, self.nats, self.clock, prefix=settings.topic_prefix, partitions=settings.partitions
        )
        self.dead_letters = DeadLetters(
            self.app.driver.log,
            self.clock,
            prefix=settings.topic_prefix,
            partitions=settings.partitions,
            read_message=self.nats_in.read_message,
        )
        self.owners = self._new_owners()
        servicer = Servicer(
            self.engine.commands, self.engine.reads, self.definitions, self.dead_letters, self.states, new_id
        )
        sharing = None if self.owners is None else Sharing(self.owners, new_id)
        self.grpc = GrpcServer(servicer, settings.grpc_addr, self.clock, sharing)
        self.http = HttpServer(settings.http_addr, self.states, settings.required, self.metrics.registry)

    # -- building

    def _new_app(self) -> CeremonyApp:
        settings = self.settings
        return create_app(
            f"{settings.topic_prefix}.engine",
            settings.log,
            clock=self.clock,
            partitions=settings.partitions,
            topics=topics(settings.topic_prefix, settings.partitions),
            prefix=settings.topic_prefix,
            worker_id=settings.worker_id,
            row_cache=RowCache(settings.row_cache_mib * 1024 * 1024),
            stores=self._new_stores(),
            replication=settings.replication_factor,
            topic_config={} if settings.flush_messages is None else {"flush.messages": str(settings.flush_messages)},
        )

    def _new_stores(self) -> Stores:
        if self.settings.state == "memory":
            return MemoryStores()
        from streams.transport.partition.rocks_store import RocksStores  # noqa: PLC0415 - only the library that is used is loaded

        return RocksStores(self.settings.state_dir)

    def _new_owners(self) -> WorkerDirectory | None:
        """The directory of the workers that share the log; None where there is only this one."""
        if self.app.driver.shared is None or "engine" not in self.settings.roles:
            return None
        owners = WorkerDirectory(
            self.app.driver.shared,
            self.clock,
            self._log_clock,
            prefix=self.settings.topic_prefix,
            partitions=self.settings.partitions,
            worker=self.settings.worker_id or new_id(),
            address=self.advertised,
            mine=self.engine.partitions.mine,
            generation=lambda: self.app.consumer_generation_id,
        )
        self.engine.on_change = owners.changed
        return owners

    def advertised(self) -> str:
        """Where the other workers reach our gRPC."""
        if self.settings.advertised_addr is not None:
            return self.settings.advertised_addr
        host = self.settings.grpc_addr.rpartition(":")[0]
        return f"{platform.node() if host in EVERY_INTERFACE else host}:{self.grpc.port}"

    def _attach_agents(self) -> None:
        ceremony = CeremonyAgent(
            self.kinds, self.settings.topic_prefix, self._log_clock, self.engine.commands.replies.expects
        )
        engine, metrics = self.engine, self.metrics
        owner = PartitionListener(engine.taken, engine.applied, engine.lost, metrics.recovered, metrics.saved)
        for spec, function in agents(self.settings.topic_prefix, ceremony, owner, step_agents(self._agent_ports())):
            self.app.attach(spec, function)

    def _agent_ports(self) -> AgentPorts:
        settings = self.settings
        return AgentPorts(
            Wiring(prefixed(settings.topic_prefix, COMMANDS), CORRELATION_ID, self._log_clock.now),
            self.clock,
            self.ray,
            self.outbound,
            Model(settings.vllm_url, settings.vllm_model),
            publish_subjects=tuple(settings.publish_subjects),
            concurrency=settings.agent_concurrency,
            # The executor's own deadline ends a call; this one stands behind it, however long that is.
            ray_call_seconds=settings.ray_call_timeout_seconds + BACKSTOP_SECONDS,
        )

    def _server_rule(self, definition: Definition, file: str) -> list[Problem]:
        """What this server asks of a definition beyond the language: subjects it may publish to."""
        return subject_problems(definition, self.settings.publish_subjects, file)

    # -- running

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log.info("stopping")
        await self._close()

    async def _close(self) -> None:
        """Stop every part in good order, in bounded time; `halfway` says that it was not enough.

        With Kafka away a last checkpoint would wait for it. Ending without one is what kill -9 does: the log folds it
        again.
        """
        closing = self.clock.spawn(self._stack.aclose(), name="stop")
        try:
            async with self.clock.timeout(STOP_SECONDS):
                await asyncio.wait({closing})
        except TimeoutError:
            closing.cancel()
        # A part of a library that was cut off in its own stop ends `closing` as cancelled, though nobody cancelled us.
        self.halfway = not closing.done() or closing.cancelled() or closing.exception() is not None
        if self.halfway:
            log.warning("stopped_halfway", reason="what was not saved is folded again next time")
        else:
            log.info("stopped")

    async def ended(self) -> None:
        """Returns when a part has failed for good; `failure` says why. The program then ends with an error."""
        await self._ended.wait()

    def states(self) -> dict[str, str]:
        """State of each neighbour that a role of this worker needs: `ok`, or what is wrong."""
        log = self.engine.partitions.readiness()["log"]
        states = {"log": log, "nats": self._nats_state()}
        if "engine" in self.settings.roles:
            states = {**self.engine.partitions.readiness(), "nats": self._nats_state(), "ray_executor": self._ray_state}
        return states

    def _nats_state(self) -> str:
        """Of the bridges; where there are none, of the connection that publish steps use."""
        if "bridge" not in self.settings.roles:
            return "ok" if self.nats.is_connected else self.nats.state
        bridges = [state for state in (self.nats_out.state, self.nats_in.state) if state != "ok"]
        return "; ".join(bridges) or "ok"

    async def _start(self) -> None:
        log.info("starting", version=VERSION)
        self.definitions.report()
        self.app.on_crash = self._fail
        start = self._started
        await start(self.http.stop, self.http.start)  # first: readiness tells what the others wait for
        self._stack.push_async_callback(self.ray.close)
        await start(self.nats.stop, self.nats.start)
        await start(self.app.driver.log.stop, self._connect_log)
        self._stack.push_async_callback(self._stop_telling)
        if "engine" in self.settings.roles:
            await self._start_engine()
        else:
            await self.app.driver.log.create(self.app.topic_specs)
        if "bridge" in self.settings.roles:
            await start(self.nats_out.stop, self.nats_out.start)
            await start(self.nats_in.stop, self.nats_in.start)
        if "engine" in self.settings.roles:
            await start(self.grpc.stop, self._open_front)
        log.info(
            "serving",
            roles=",".join(self.settings.roles),
            grpc=self.grpc.port,
            http=self.http.port,
            log=self.settings.log.partition("?")[0],
        )

    async def _start_engine(self) -> None:
        await self._started(self.app.stop, self.app.start)
        self._spawn(self.timers.run(), "timers")
        self._spawn(self.engine.sweep.run(), "sweep")
        self._spawn(self._probe(), "probe")

    async def _open_front(self) -> None:
        """From here on other workers may ask us."""
        await self.grpc.start()
        if self.owners is not None:
            self._telling = [
                self._begin(self.owners.listen(), "owners-listen"),
                self._begin(self.owners.beat(), "owners-beat"),
            ]

    async def _started(
        self, stop: Callable[[], Awaitable[Any]], start: Callable[[], Awaitable[Any]] | None = None
    ) -> None:
        """Start a part; from here on it is stopped with the worker, also when its start failed half-way."""
        self._stack.push_async_callback(stop)
        if start is not None:
            await start()

    async def _connect_log(self) -> None:
        """Wait for the log as long as it takes: a worker that started before it needs nobody to start it again."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self.app.driver.log.start()
                return
            except LogUnavailable as error:
                if pause == FIRST_PAUSE_SECONDS:
                    log.warning("waiting_for_log", reason=str(error))
            await self.clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _spawn(self, coroutine: Any, name: str) -> None:
        """Start a task that ends where the parts that were started after it have been stopped."""
        self._stack.push_async_callback(self._end, self._begin(coroutine, name))

    def _begin(self, coroutine: Any, name: str) -> asyncio.Task[Any]:
        task = self.clock.spawn(coroutine, name=name)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _stop_telling(self) -> None:
        """After the app: until its last partition has gone the others hear what is still ours."""
        for task in self._telling:
            await self._end(task)

    async def _end(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    def _fail(self, failure: BaseException) -> None:
        if self.failure is None:
            self.failure = failure
            # What the log refused says all there is to say, in one line.
            trace = None if isinstance(failure, LogFailed) else failure
            log.error("worker_failed", reason=str(failure) or type(failure).__name__, exc_info=trace)
        self._ended.set()

    async def _probe(self) -> None:
        """Keep the health service and the Ray executor's state fresh."""
        while True:
            try:
                await self.ray.probe()
                self._ray_state = "ok"
            except Unreachable as error:
                self._ray_state = error.reason
            self.metrics.live.set(self.engine.partitions.owned_rows())
            await self.grpc.set_ready(ready=self.http.ready())
            await self.clock.sleep(PROBE_SECONDS)
