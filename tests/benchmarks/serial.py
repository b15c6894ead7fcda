"""One ceremony at a time, through the real gRPC call, until its last event has been read from JetStream."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import nats
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
from nats.aio.subscription import Subscription

from tests.benchmarks import preload, processes
from tests.benchmarks.processes import BenchmarkFailed
from tests.benchmarks.workloads import SAID, Workload

# The workloads: five merges on each log, and on Kafka five steps that ask their agent.
KAFKA, EMBEDDED, ASKED = "kafka", "embedded", "kafka, publish steps"
# Uncounted ceremonies, which open the connections and warm the code.
WARM_UP = 10
WAIT_SECONDS = 20.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SerialRun:
    """Times of one ceremony of five steps."""

    count: int
    p50_ms: float
    """From the call of StartPlanningCeremony until `ceremony.completed` was read from JetStream."""
    p99_ms: float
    start_p50_ms: float
    """Time of the call alone, after which the start is durable and folded."""
    log_p50_ms: float
    """From the append of the start to the append of the last step's outcome, by the log's timestamps.

    0 if the start is the only command.
    """
    log_p99_ms: float


class _Event(msgspec.Struct):
    event_type: str
    timestamp: datetime
    payload: dict[str, object]


_decode = msgspec.json.Decoder(_Event).decode


async def measure(
    folder: Path,
    name: str,
    log_url: str,
    workload: Workload,
    count: int,
    partitions: int,
    progress: Progress,
    *,
    flush: bool,
) -> SerialRun:
    """Run `count` ceremonies after a warm-up. Raises BenchmarkFailed."""
    async with processes.nats(folder / "nats", sync_always=False) as server:
        settings = {
            "CEREMONY_LOG": log_url,
            "CEREMONY_TOPIC_PREFIX": name,
            "CEREMONY_PARTITIONS": partitions,
            "NATS_URL": server.url,
            "CEREMONIES_DIR": workload.folder,
            **({"CEREMONY_FLUSH_MESSAGES": 1} if flush else {}),
        }
        async with processes.worker(folder, settings) as worker:
            await worker.ready()
            connection = await nats.connect(server.url)
            try:
                events = await connection.jetstream().subscribe("ceremony.>", stream="CEREMONY", ordered_consumer=True)
                async with AsyncPlanningCeremonyClient(worker.address) as client:
                    return await _one_by_one(client, events, workload, name, count, progress)
            finally:
                await connection.close()


async def _one_by_one(
    client: AsyncPlanningCeremonyClient,
    events: Subscription,
    workload: Workload,
    name: str,
    count: int,
    progress: Progress,
) -> SerialRun:
    seen, started, logged = [], [], []
    for number in range(-WARM_UP, count):
        ceremony_id = f"{name}-{number + WARM_UP}"
        began = time.perf_counter()
        await client.start(
            workload.name,
            ceremony_id=ceremony_id,
            story_id=preload.STORY,
            requested_by="benchmark",
            inputs={"payload": preload.PAYLOAD},
        )
        answered = time.perf_counter()
        first, last = await until_completed(events, f"{ceremony_id}:{preload.STORY}")
        ended = time.perf_counter()
        if number >= 0:
            seen.append(1000 * (ended - began))
            started.append(1000 * (answered - began))
            logged.append(1000 * (last - first).total_seconds())
            progress(number + 1, count)
    return SerialRun(
        count=count,
        p50_ms=statistics.median(seen),
        p99_ms=percentile(seen, 99),
        start_p50_ms=statistics.median(started),
        log_p50_ms=statistics.median(logged),
        log_p99_ms=percentile(logged, 99),
    )


async def until_completed(events: Subscription, instance_id: str) -> tuple[datetime, datetime]:
    """Return the times at which the fold started and completed the ceremony, by the log's clock."""
    first: datetime | None = None
    while True:
        event = _decode((await events.next_msg(timeout=WAIT_SECONDS)).data)
        if event.event_type == SAID:
            continue
        if event.payload.get("instance_id") != instance_id:
            raise BenchmarkFailed(f"{event.event_type} of {event.payload.get('instance_id')} came instead of ours")
        first = first or event.timestamp
        if event.event_type == "ceremony.completed":
            return first, event.timestamp


def percentile(values: list[float], percent: int) -> float:
    """Return the value below which `percent` per cent lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
