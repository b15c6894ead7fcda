"""Starts the parts of a worker in order, watches them, and stops them in the reverse order.

async with Worker(settings) as worker:
    await worker.ended()  # returns when a part has failed for good
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

from bridge.clock import HostClock
from ceremony import descriptors, heap, logs
from ceremony.build import Parts
from ceremony.observing import observing
from ceremony.settings import Settings
from ceremony.version import VERSION
from ports.clock import Clock
from ports.log import LogFailed, LogUnavailable
from ports.masking import masked_address
from streams.outages import LOG_WAITS, NeighbourOutage

log = structlog.get_logger(__name__)

# Between looks for lines that are due.
TELL_SECONDS = 1.0
# Between probes of the neighbours.
PROBE_SECONDS = 2.0
# Between two looks at readiness, for the health service.
ANNOUNCE_SECONDS = 0.5
# For the parts of a stop that was cut off to close their sockets.
CUT_OFF_SECONDS = 0.5
# Between attempts to reach a log that is not there yet.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 4.0


def worker_of_process(settings: Settings) -> Worker:
    """The only worker of this process, with descriptors, allocator and garbage collector set up for it."""
    descriptors.raise_limit()
    heap.collect_seldom()
    heap.allocate(heap.FAST if settings.state == "memory" else heap.SMALL)
    return Worker(settings)


class Worker:
    """One process of the engine. `async with` starts and stops it."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or HostClock()
        parts = Parts(settings, self.clock)
        self.app, self.ray, self.nats, self.log = parts.app, parts.ray, parts.nats, parts.log
        self._outages = parts.outages
        self.engine, self.timers = parts.pipeline.engine, parts.pipeline.timers
        self.nats_out, self.nats_in = parts.pipeline.nats_out, parts.pipeline.nats_in
        self.idempotency, self.directory = parts.idempotency, parts.directory
        self.history_copy = parts.history_copy
        self.projectors, self.lags = parts.projectors, parts.lags
        self.spans = parts.spans
        self.definitions, self.metrics, self.readiness = parts.definitions, parts.metrics, parts.readiness
        self.grpc, self.http = parts.grpc, parts.http
        self.failure: BaseException | None = None
        """The error of the first part that failed for good."""
        self.halfway = False
        """True once a stop took too long and was given up: tasks of a library may still run."""
        self._ended = asyncio.Event()
        self._heartbeats: list[asyncio.Task[Any]] = []
        self._watching: list[asyncio.Task[Any]] = []
        """They end first: a probe would connect again to a neighbour that was left."""
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._close(self.settings.stop_seconds)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log.info("stopping", seconds=self.settings.stop_seconds)
        begun = self.clock.monotonic()
        if self.failure is None:
            await self._drain()
        await self._close(self.settings.stop_seconds - (self.clock.monotonic() - begun))

    async def _drain(self) -> None:
        """Refuse starts and have load balancers choose another worker, while this one serves all else."""
        self.readiness.drain()
        if "engine" not in self.settings.roles:
            return  # nobody calls it
        await self._announce()
        with contextlib.suppress(TimeoutError):
            async with self.clock.timeout(self.settings.drain_seconds):
                await self.ended()

    async def _close(self, seconds: float) -> None:
        """Stop every part in good order, in bounded time; sets `halfway` when the time was too short.

        Without Kafka a last checkpoint would wait for ever. Ending without it is safe, as after kill -9: the next
        owner folds the commands again.
        """
        for task in self._watching:
            await self._end(task)
        closing = self.clock.spawn(self._stack.aclose(), name="stop")
        if not await self._done(closing, seconds - CUT_OFF_SECONDS):
            closing.cancel()
            await self._done(closing, CUT_OFF_SECONDS)
        # A library that was cut off in its own stop can end `closing` as cancelled, though nobody cancelled us.
        self.halfway = not closing.done() or closing.cancelled() or closing.exception() is not None
        if self.halfway:
            log.warning("stopped_halfway", reason="unsaved work is folded again at the next start")
        else:
            log.info("stopped")

    async def _done(self, task: asyncio.Task[Any], seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with self.clock.timeout(seconds):
                await asyncio.wait({task})
        return task.done()

    async def ended(self) -> None:
        """Return when a part has failed for good; `failure` is the reason."""
        await self._ended.wait()

    async def _start(self) -> None:
        log.info("starting", version=VERSION)
        self.definitions.report()
        self.metrics.definition_names.admit(file.name for file in self.definitions.all() if file.definition is not None)
        self.app.on_crash = self._fail
        start = self._started
        await start(self.http.stop, self.http.start)  # first: readiness shows what the others wait for
        self._watching = [self._begin(self._probe(), "probe"), self._begin(self._watch(), "readiness")]
        if self.spans is not None:
            self._stack.push_async_callback(self.spans.stop)
        self._stack.push_async_callback(self.ray.close)
        for beside in (self.idempotency, self.history_copy):
            if beside is not None:
                self._stack.push_async_callback(beside.close)
        for projector in self.projectors:  # the probes connect to its store before it starts
            self._stack.push_async_callback(projector.store.close)
        await start(self.nats.stop, self.nats.start)
        self._observe(self._tell, "lines")
        await start(self.log.stop, self._connect_log)
        self._stack.push_async_callback(self._stop_heartbeats)
        if "engine" in self.settings.roles:
            await self._start_engine()
        else:
            await self.log.create(self.app.all_topics)
        await start(self._stop_projectors, self._start_projectors)
        if "bridge" in self.settings.roles:
            await start(self.nats_out.stop, self.nats_out.start)
            await start(self.nats_in.stop, self.nats_in.start)
        self._observe(self.lags.run, "lags")
        if "engine" in self.settings.roles:
            await start(self.grpc.stop, self._open_front)
        log.info(
            "serving",
            roles=",".join(self.settings.roles),
            grpc=self.grpc.port,
            http=self.http.port,
            log=masked_address(self.settings.log.partition("?")[0]),
        )

    async def _start_engine(self) -> None:
        await self._started(self.app.stop, self.app.start)
        self._spawn(self.timers.run(), "timers")
        self._observe(self.engine.sweep.run, "sweep")
        self._spawn(self.engine.indexes.run(), "indexes")
        if self.engine.journal is not None:
            self._observe(self.engine.journal.run, "journal")

    async def _start_projectors(self) -> None:
        for projector in self.projectors:
            projector.on_failure = self._fail
            await projector.start()

    async def _stop_projectors(self) -> None:
        """Stop them side by side: each of them waits a while for a store that is away."""
        stopping = [self.clock.spawn(projector.stop(), name="projector-stop") for projector in self.projectors]
        if not stopping:
            return
        try:
            await asyncio.wait(stopping)
        except asyncio.CancelledError:
            for task in stopping:
                task.cancel()
            await asyncio.wait(stopping)
            raise
        for task in stopping:
            task.result()

    async def _open_front(self) -> None:
        """Open gRPC, then announce this worker to the others."""
        await self.grpc.start()
        if self.directory is not None:
            self._heartbeats = [
                self._begin(self.directory.listen(), "owners-listen"),
                self._begin(self.directory.beat(), "owners-beat"),
            ]

    async def _started(self, stop: Callable[[], Awaitable[Any]], start: Callable[[], Awaitable[Any]]) -> None:
        """Start a part. From here on the worker's stop includes it, also when its start failed half-way."""
        self._stack.push_async_callback(stop)
        await start()

    async def _connect_log(self) -> None:
        """Wait for the log as long as it takes: a worker started before the log needs no restart."""
        pause = FIRST_PAUSE_SECONDS
        outage = NeighbourOutage("log", self.clock, LOG_WAITS)
        while True:
            try:
                await self.log.start()
            except LogUnavailable as error:
                outage.failed(error.code, error.message)
            else:
                outage.answered()
                return
            await self.clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        """Start a task that is stopped in its turn, after the parts that were started after it."""
        self._stack.push_async_callback(self._end, self._begin(coroutine, name))

    def _observe(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        """Start a task that only looks on, so its errors end nothing."""
        self._spawn(observing(name, self.clock, run), name)

    def _begin(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = self.clock.spawn(coroutine, name=name)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _stop_heartbeats(self) -> None:
        """Stop them after the app: until its last partition has gone, the others have to know its owner."""
        for task in self._heartbeats:
            await self._end(task)

    async def _end(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    def _fail(self, failure: BaseException) -> None:
        if self.failure is None:
            self.failure = failure
            # The message of a LogFailed is complete; a traceback would add nothing.
            trace = None if isinstance(failure, LogFailed) else failure
            log.error("worker_failed", reason=str(failure) or type(failure).__name__, exc_info=trace)
        self._ended.set()

    async def _tell(self) -> None:
        """Write the lines that are due, though nothing happens that would bring one."""
        while True:
            for outage in self._outages:
                outage.tick()
            logs.report_left_out(self.clock.wall())
            await self.clock.sleep(TELL_SECONDS)

    async def _probe(self) -> None:
        while True:
            await self.readiness.probe()
            self.metrics.live.set(self.engine.partitions.owned_rows())
            await self.clock.sleep(PROBE_SECONDS)

    async def _watch(self) -> None:
        """Keep the health service as `/readyz` is, and notice the times at which neighbours change."""
        while True:
            await self._announce()
            await self.clock.sleep(ANNOUNCE_SECONDS)

    async def _announce(self) -> None:
        if "engine" not in self.settings.roles:
            self.readiness.neighbours()
        elif self.readiness.is_draining:
            await self.grpc.drain()
        else:
            await self.grpc.set_ready(ready=self.readiness.is_ready)
