"""The engine under load: many ceremonies wait in the log, one worker works them off, and the log tells how fast."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import nats
import nats.errors
from nats.aio.client import Client

from bridge.clock import HostClock
from streams.topics import COMMANDS, EVENTS, SUBJECT, prefixed, step_topic
from streams.transport.kafka_log import KafkaLog
from tests.benchmarks import preload, processes
from tests.benchmarks.processes import BenchmarkFailed, CpuMeter
from tests.benchmarks.profiler import Profile, Profiler
from tests.benchmarks.sizes import StepRecords, size_of
from tests.services import KafkaServer

EXECUTED = b"ceremony.step.executed"
RUN_SECONDS = 150.0
"""How long one run may take."""
LOOK_SECONDS = 0.1
Progress = Callable[[int, int], None]
"""(events on NATS, events wanted)."""


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What one run was measured to do."""

    steps: int
    steps_per_s_log: float
    """By the log's own timestamps, from the first to the last `ceremony.step.executed`."""
    steps_per_s: float
    """From that first one until JetStream has stored the last event."""
    cpu_us_per_step: float
    """Of the worker, until then."""
    kafka_cpu_us_per_step: float
    nats_cpu_us_per_step: float
    others_cores: float
    """Cores that all other work on the machine took meanwhile: what it costs when it is not 0."""
    records: StepRecords
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of one run."""

    ceremonies: int
    partitions: int
    sync_always: bool = False
    """NATS syncs every message to disk, else at its default interval."""
    profile_to: Path | None = None


async def measure(kafka: KafkaServer, folder: Path, name: str, load: Load, progress: Progress) -> EngineRun:
    """Preload ceremonies, start a worker on them, and wait until NATS has all their events. Raises BenchmarkFailed."""
    log = KafkaLog([kafka.bootstrap], HostClock())
    await log.start()
    try:
        await preload.preload(log, name, load.ceremonies, load.partitions)
        async with processes.nats(folder / "nats", sync_always=load.sync_always) as server:
            settings = {
                "CEREMONY_LOG": f"kafka://{kafka.bootstrap}",
                "CEREMONY_TOPIC_PREFIX": name,
                "CEREMONY_PARTITIONS": load.partitions,
                "NATS_URL": server.url,
            }
            async with processes.worker(folder, settings) as worker:
                profiler = Profiler(worker.pid, load.profile_to)
                meter = CpuMeter(
                    {"worker": worker.pid, "kafka": kafka.pid or 0, "nats": server.pid or 0, "bench": os.getpid()}
                )
                with meter.running():
                    ended = await _until_stored(server.url, worker, load.ceremonies, profiler, progress)
                profile = await profiler.finish()
        began, last, records = await _look(log, name)
    finally:
        await log.stop()
    steps = load.ceremonies * preload.STEPS
    used = meter.between(began, ended)
    others = used.pop(processes.MACHINE) - sum(used.values())
    cpu = {who: 1e6 * seconds / steps for who, seconds in used.items()}
    return EngineRun(
        steps,
        steps / (last - began),
        steps / (ended - began),
        cpu["worker"],
        cpu["kafka"],
        cpu["nats"],
        max(0.0, others / (ended - began)),
        records,
        profile,
    )


async def _look(log: KafkaLog, prefix: str) -> tuple[float, float, StepRecords]:
    """Append times of the first and the last executed step, in seconds, and what a step's records weigh."""
    times: list[int] = []
    sample = {}
    for topic in (EVENTS, COMMANDS, step_topic("aggregation")):
        name = prefixed(prefix, topic)
        for partition, (start, end) in enumerate(await log.ends(name)):
            async for records in log.read(name, partition, start, end):
                for record in records:
                    if topic != EVENTS or dict(record.headers).get(SUBJECT) == EXECUTED:
                        times += [record.timestamp] if topic == EVENTS else []
                        sample[topic] = record
    sizes = StepRecords(
        outcome=size_of(sample[COMMANDS]),
        request=size_of(sample[step_topic("aggregation")]),
        event=size_of(sample[EVENTS]),
    )
    return min(times) / 1000, max(times) / 1000, sizes


async def _until_stored(
    url: str, worker: processes.WorkerProcess, ceremonies: int, profiler: Profiler, progress: Progress
) -> float:
    """Wall-clock time at which JetStream stored the last event."""
    wanted, deadline = ceremonies * preload.EVENTS, time.monotonic() + RUN_SECONDS
    connection = await nats.connect(url)
    try:
        while True:
            stored, last = await _stored(connection)
            progress(stored, wanted)
            if stored:
                profiler.begin()
            if stored >= wanted:
                return last
            worker.check()
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{stored} of {wanted} events on NATS after {RUN_SECONDS:.0f} s")
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await connection.close()


class _State(msgspec.Struct):
    messages: int = 0
    last_ts: datetime | None = None


class _Info(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)


async def _stored(connection: Client) -> tuple[int, float]:
    """Messages of the stream CEREMONY, and when the last one was stored: nats-py's own call leaves that time out."""
    try:
        answer = await connection.request("$JS.API.STREAM.INFO.CEREMONY", timeout=5)
    except nats.errors.Error:
        return 0, 0.0
    state = msgspec.json.decode(answer.data, type=_Info).state
    return state.messages, state.last_ts.timestamp() if state.last_ts and state.messages else 0.0
