"""The engine under load: many ceremonies are in the log at once, and the log's timestamps give the rate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ports.log import Record
from streams.topics import COMMANDS, EVENTS, STEP_KINDS, SUBJECT, prefixed, step_topic
from streams.transport.kafka.log import KafkaLog
from tables.commands import Start, StepOutcome, decode_command
from tests.benchmarks import jetstream, preload, processes, warm_up
from tests.benchmarks.meter import MACHINE, CpuMeter
from tests.benchmarks.processes import BenchmarkFailed
from tests.benchmarks.profiler import Profile, Profiler
from tests.benchmarks.site import Ground, Site, log_of, started
from tests.benchmarks.sizes import CeremonyRecords, Weighed
from tests.benchmarks.workloads import MERGES, STEPS, Workload

EXECUTED = b"ceremony.step.executed"
# Time limit of one run.
RUN_SECONDS = 150.0
# Shorter than the six seconds after which the group takes a silent member for dead.
FROZEN_SECONDS = 4.0
TOPICS = (EVENTS, COMMANDS, *map(step_topic, STEP_KINDS))
WORKER = "worker-"
SAVED = ("ceremony_checkpoint_seconds_count", "ceremony_checkpoint_rows_total", "ceremony_checkpoint_seconds_sum")
# Arguments: messages on NATS, messages wanted.
Progress = Callable[[int, int], None]
# Topic → log end of each partition.
Ends = Mapping[str, Sequence[int]]


class Checkpoints(NamedTuple):
    """Number, duration and rows of all workers' checkpoints, by their own metrics."""

    made: float
    """Checkpoints; each is of one partition."""
    rows: float
    seconds: float
    """Seconds, including the wait for the effects' acknowledgements and for the transaction."""


@dataclass(frozen=True, slots=True)
class EngineRun:
    """Measurements of one run."""

    steps: int
    steps_per_s_log: float
    """From the moment the workers go on until the last `ceremony.step.executed`, by the log's timestamp."""
    steps_per_s: float
    """From the moment the workers go on until JetStream has stored the last event."""
    cpu_us_per_step: float
    """CPU of all workers together, until then."""
    kafka_cpu_us_per_step: float
    nats_cpu_us_per_step: float
    others_cores: float
    """Cores used by all other work on the machine meanwhile; a figure above 0 makes the run slower."""
    partitions: list[int]
    """Partitions of each worker."""
    checkpoints: Checkpoints
    records: CeremonyRecords
    profile: Profile | None = None


async def measure(
    ground: Ground, ceremonies: int, progress: Progress, profile_to: Path | None = None, workload: Workload = MERGES
) -> EngineRun:
    """Give ceremonies to warm workers, and wait until NATS has all their events. Raises BenchmarkFailed.

    `profile_to`: file for the samples of the first worker.
    """
    async with log_of(ground) as log:
        async with started(ground, log) as site:
            shares = await warm_up.shared(site)
            before = await warm_up.warm_up(site, workload)
            ends = await _ends(site)
            saved_before = await checkpoints(site)
            pids = {f"{WORKER}{number}": worker.pid for number, worker in enumerate(site.workers)}
            meter = CpuMeter({**pids, "kafka": ground.kafka.pid or 0, "nats": site.nats.pid or 0, "bench": os.getpid()})
            profiler = Profiler(site.workers[0].pid, profile_to)
            with meter.running():
                began = await _give(site, workload, ceremonies)
                profiler.begin()
                ended = await _until_stored(site, before, ceremonies * workload.messages, progress)
            saved = await checkpoints(site)
            profile = await profiler.finish()
        last, records = await _look(log, ends, ceremonies)
    steps = ceremonies * STEPS
    used = meter.between(began, ended)
    others = used.pop(MACHINE) - sum(used.values())
    cpu = {who: 1e6 * seconds / steps for who, seconds in used.items()}
    return EngineRun(
        steps,
        steps / (last - began),
        steps / (ended - began),
        sum(us for who, us in cpu.items() if who.startswith(WORKER)),
        cpu["kafka"],
        cpu["nats"],
        max(0.0, others / (ended - began)),
        shares,
        Checkpoints(*(now - then for then, now in zip(saved_before, saved, strict=True))),
        records,
        profile,
    )


async def checkpoints(site: Site) -> Checkpoints:
    """Return the sums over all checkpoints so far."""
    said = await warm_up.metrics(site)
    return Checkpoints(*(sum(one.get(name, 0) for one in said) for name in SAVED))


async def _give(site: Site, workload: Workload, ceremonies: int) -> float:
    """Append the commands while the workers stand still, so that each finds all of its work at once.

    Returns the wall-clock time at which they go on. Raises BenchmarkFailed if appending takes so long that
    the group would take their partitions from them.
    """
    ground = site.ground
    commands = preload.commands(workload, ground.name, ceremonies, ground.partitions, site.log.partition_of)
    began = time.monotonic()
    with processes.frozen(site.workers):
        await preload.append(site.log, prefixed(ground.name, COMMANDS), commands)
        now = time.time()
    if (took := time.monotonic() - began) > FROZEN_SECONDS:
        raise BenchmarkFailed(f"{ceremonies} starts took {took:.1f} s to append: ask for fewer ceremonies")
    return now


async def _until_stored(site: Site, before: int, wanted: int, progress: Progress) -> float:
    def seen(count: int) -> None:
        progress(max(0, count - before), wanted)

    return await jetstream.until_stored(site.connection, site.workers, before + wanted, RUN_SECONDS, seen)


async def _ends(site: Site) -> Ends:
    names = [prefixed(site.ground.name, topic) for topic in TOPICS]
    return {name: [end for _, end in await site.log.ends(name)] for name in names}


async def _look(log: KafkaLog, starts: Ends, ceremonies: int) -> tuple[float, CeremonyRecords]:
    """Return the append time of the last executed step in seconds, and the records of one ceremony."""
    executed: list[int] = []
    begun, outcomes, requests, events = Weighed(), Weighed(), Weighed(), Weighed()
    for name, begins in starts.items():
        for partition, (begin, (_, end)) in enumerate(zip(begins, await log.ends(name), strict=True)):
            async for records in log.read(name, partition, begin, end):
                for record in records:
                    if name.endswith(COMMANDS):
                        weigh_command(record, begun, outcomes)
                    elif name.endswith(EVENTS):
                        events.add(record)
                        executed += [record.timestamp] if dict(record.headers).get(SUBJECT) == EXECUTED else []
                    else:
                        requests.add(record)
    every = (begun, outcomes, requests, events)
    return max(executed) / 1000, CeremonyRecords(*(weighed.of(ceremonies) for weighed in every))


def weigh_command(record: Record, starts: Weighed, outcomes: Weighed) -> None:
    """Add a start or an outcome. Definitions are commands too, but once in a partition, so they do not count."""
    command = decode_command(record.value or b"")
    if isinstance(command, Start | StepOutcome):
        (starts if isinstance(command, Start) else outcomes).add(record)
