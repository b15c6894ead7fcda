"""Live ceremonies: backlog reviews that start at a fixed rate, with agents that answer and people who decide."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc
import msgspec

from tests.benchmarks import processes
from tests.benchmarks.layouts import Layout
from tests.benchmarks.live_load import Measured, Options
from tests.benchmarks.meter import MACHINE, CpuMeter
from tests.benchmarks.processes import ROOT, BenchmarkFailed, WorkerProcess
from tests.services import Server

# A rate is kept up when the 99th percentile of the whole ceremony stays below this.
KEPT_UP_MS = 1000.0
# Seconds from the acceptance of a task to an agent's answer.
AGENT_SECONDS = 0.01
SKIP_SECONDS = 2.0
WAIT_SECONDS = 15.0
# Uncounted run before the first rate, which opens connections and loads the definition.
WARM_RATE, WARM_SECONDS = 10.0, 3.0
AGENTS, CALLERS = "agents", "callers"
Progress = Callable[[int, int], None]


class Agents(Server):
    """The simulated Ray executor as a process, whose agents answer after AGENT_SECONDS."""

    name = "agents"

    def __init__(self, folder: Path, nats_url: str) -> None:
        super().__init__(folder)
        self._nats_url = nats_url

    def _command(self) -> Sequence[str]:
        served = ("--grpc", self.address, "--nats", self._nats_url)
        knobs = ("--latency", str(AGENT_SECONDS), "--jitter", "0")
        return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "ceremony.dev.ray_simulation", *served, *knobs]

    def _answers(self) -> bool:
        with grpc.insecure_channel(self.address) as channel, contextlib.suppress(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channel).result(timeout=0.5)
            return True
        return False


class LiveLog(NamedTuple):
    """A log that live ceremonies run on."""

    name: str
    url: str
    kafka_pid: int | None = None
    flush: bool = False
    """Kafka syncs every append to disk."""
    sync_always: bool = False
    """NATS syncs every message to disk."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """Measurements at one rate."""

    log: str
    layout: Layout
    rate: float
    measured: Measured
    cpu_ms: Mapping[str, float]
    """CPU of each process in ms for one ceremony."""
    others_cores: float
    """Cores used by all other work on the machine meanwhile."""

    @property
    def kept_up(self) -> bool:
        return self.measured.completed == self.measured.due and self.measured.whole.p99_ms < KEPT_UP_MS

    @property
    def engine_cpu_ms(self) -> float:
        """CPU of the engine, its log and NATS together, without callers and agents."""
        return sum(ms for who, ms in self.cpu_ms.items() if who not in (AGENTS, CALLERS))


async def measure(
    folder: Path,
    log: LiveLog,
    layout: Layout,
    rates: Sequence[float],
    seconds: float,
    partitions: int,
    progress: Progress,
) -> list[LiveRun]:
    """Run the rates one after the other on one engine, until one is not kept up. Raises BenchmarkFailed."""
    found: list[LiveRun] = []
    async with _engine(folder, log, layout, partitions) as engine:
        await asyncio.to_thread(_load, engine.options("warm", WARM_RATE, WARM_SECONDS, 0.0))
        for number, rate in enumerate(rates, start=1):
            options = engine.options(f"live-{rate:g}".replace(".", "-"), rate, seconds, SKIP_SECONDS)
            found.append(await _at_rate(engine, options))
            progress(number, len(rates))
            if not found[-1].kept_up:
                break
    return found


@dataclass(frozen=True, slots=True)
class _Engine:
    """The running processes."""

    log: LiveLog
    layout: Layout
    workers: Sequence[WorkerProcess]
    nats_url: str
    pids: Mapping[str, int]

    def options(self, name: str, rate: float, seconds: float, skip_seconds: float) -> Options:
        fronts = [
            worker.address
            for worker, roles in zip(self.workers, self.layout.roles, strict=True)
            if "engine" in roles.split(",")
        ]
        return Options(
            addresses=fronts,
            nats=self.nats_url,
            name=name,
            rate=rate,
            seconds=seconds,
            skip_seconds=skip_seconds,
            wait_seconds=WAIT_SECONDS,
        )


@contextlib.asynccontextmanager
async def _engine(folder: Path, log: LiveLog, layout: Layout, partitions: int) -> AsyncIterator[_Engine]:
    """Start a nats-server, agents and workers, and wait until all are ready."""
    async with processes.nats(folder / "nats", sync_always=log.sync_always) as server:
        agents = Agents(folder / "agents", server.url)
        await asyncio.to_thread(agents.start)
        try:
            settings = {
                "CEREMONY_LOG": log.url,
                "CEREMONY_TOPIC_PREFIX": folder.name,
                "CEREMONY_PARTITIONS": partitions,
                "NATS_URL": server.url,
                "RAY_EXECUTOR_URL": agents.address,
                **({"CEREMONY_FLUSH_MESSAGES": 1} if log.flush else {}),
            }
            async with processes.workers(folder, settings, layout) as workers:
                for worker in workers:
                    await worker.ready()
                pids = {f"worker {number}": worker.pid for number, worker in enumerate(workers, start=1)}
                pids |= {"nats": server.pid or 0, AGENTS: agents.pid or 0}
                pids |= {"kafka": log.kafka_pid} if log.kafka_pid else {}
                yield _Engine(log, layout, workers, server.url, pids)
        finally:
            await asyncio.to_thread(agents.kill)


async def _at_rate(engine: _Engine, options: Options) -> LiveRun:
    meter = CpuMeter({**engine.pids, "bench": os.getpid()})
    with meter.running():
        measured = await asyncio.to_thread(_load, options)
    for worker in engine.workers:
        worker.check()
    used = meter.between(measured.began, measured.ended)
    machine, ours = used.pop(MACHINE), used.pop("bench")
    used[CALLERS] = measured.cpu_seconds
    others = (machine - ours - sum(used.values())) / (measured.ended - measured.began)
    cpu_ms = {who: 1000 * seconds / measured.due for who, seconds in used.items()}
    return LiveRun(engine.log.name, engine.layout, options.rate, measured, cpu_ms, max(0.0, others))


def _load(options: Options) -> Measured:
    """Run callers and people in a process of their own; in the benchmark's loop they would wait for each other."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.live_load"],
        input=msgspec.json.encode(options),
        capture_output=True,
        cwd=ROOT,
        timeout=options.skip_seconds + options.seconds + options.wait_seconds + 60,
        check=False,
    )
    if done.returncode:
        raise BenchmarkFailed(f"the callers ended with {done.returncode}: {done.stderr[-500:].decode()}")
    return msgspec.json.decode(done.stdout, type=Measured)
