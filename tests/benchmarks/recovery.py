"""Recovery: a worker starts on a full changelog; the time of the whole engine and of the driver alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from aiokafka import TopicPartition

from bridge.clock import HostClock
from steps.registry import all_kinds
from streams.topics import CEREMONIES, DEFINITIONS, changelog, prefixed
from streams.transport.kafka.log import KafkaLog
from streams.transport.kafka.recovery import Recovery
from streams.transport.partition.backend import NewRecord
from tables.commands import Origin
from tables.fold.decide import decide
from tables.instance import encode_instance
from tests.benchmarks import preload, warm_up
from tests.benchmarks.meter import cpu_seconds, resident_bytes
from tests.benchmarks.processes import BenchmarkFailed
from tests.benchmarks.report import Spread, spread
from tests.benchmarks.site import Ground, log_of, started
from tests.benchmarks.throughput import Progress
from tests.benchmarks.workloads import PUBLISHES

# Rows of a produce batch, about as many as a checkpoint writes.
CHECKPOINT_ROWS = 500
RECOVERED, TAKEN = "ceremony_recovery_rows_total", "ceremony_recovery_last_seconds"


@dataclass(frozen=True, slots=True)
class RecoveryRun:
    """Cost of having a number of running ceremonies at hand again."""

    rows: int
    row_bytes: int
    """Bytes of one encoded row."""
    empty_s: Spread
    """Seconds from the start of the process until it is ready, without any rows."""
    full_s: Spread
    """The same with the rows."""
    taken_s: Spread
    """Seconds from the assignment until the last partition is at hand: fenced, read, in the timers' heap."""
    driver_s: Spread
    """Seconds in which the driver's own reader alone reads the changelogs into a dict."""
    cpu_us_per_row: float
    """CPU of the worker until it is ready, above that of the worker without rows."""
    bytes_per_row: float
    """Resident memory of a row, in the same way."""

    @property
    def rows_per_s(self) -> float:
        """Rows a second of the engine."""
        return self.rows / self.taken_s.median

    @property
    def driver_rows_per_s(self) -> float:
        return self.rows / self.driver_s.median


async def measure(ground: Ground, rows: int, repetitions: int, progress: Progress) -> RecoveryRun:
    """Start workers on an empty log, then on a log with `rows` ceremonies. Raises BenchmarkFailed."""
    async with log_of(ground) as log:
        await _start(ground, log, 0)  # makes the changelogs; not counted
        empty = [await _start(ground, log, 0) for _ in range(repetitions)]
        size = await _fill(ground, log, rows, progress)
        driver = [await _read(ground) for _ in range(repetitions)]
        full = [await _start(ground, log, rows) for _ in range(repetitions)]
    return RecoveryRun(
        rows,
        size,
        spread([start.seconds for start in empty]),
        spread([start.seconds for start in full]),
        spread([start.taken_seconds for start in full]),
        spread(driver),
        1e6 * _more([start.cpu_seconds for start in full], [start.cpu_seconds for start in empty]) / rows,
        _more([start.resident for start in full], [start.resident for start in empty]) / rows,
    )


def _more(full: Sequence[float], empty: Sequence[float]) -> float:
    return statistics.median(full) - statistics.median(empty)


class _Start(NamedTuple):
    """Cost of one worker's start until it is ready."""

    seconds: float
    taken_seconds: float
    cpu_seconds: float
    resident: float
    """Bytes."""


async def _start(ground: Ground, log: KafkaLog, rows: int) -> _Start:
    """Start a worker and measure it. Raises BenchmarkFailed, also if rows are missing."""
    async with started(ground, log) as site:
        (worker,) = site.workers
        await worker.ready()
        seconds = time.monotonic() - worker.began
        # A worker is ready before all rows are at hand: the timers' heaps are still being filled.
        (said,) = await warm_up.until_metrics(site, lambda said: said[0][RECOVERED] >= rows, f"{rows} rows")
        return _Start(seconds, said[TAKEN], cpu_seconds(worker.pid), resident_bytes(worker.pid))


async def _fill(ground: Ground, log: KafkaLog, rows: int, progress: Progress) -> int:
    """Append rows to the changelogs behind those of the first workers, whose position rows stay right."""
    pinned = PUBLISHES.definition()
    await preload.append(
        log,
        prefixed(ground.name, changelog(DEFINITIONS)),
        [[NewRecord(pinned.hash.encode(), pinned.text.encode())]] * ground.partitions,
    )
    topic = prefixed(ground.name, changelog(CEREMONIES))
    made, done, size = running_rows(ground.name, rows), 0, 0
    while some := list(islice(made, CHECKPOINT_ROWS * ground.partitions)):
        by_partition: list[list[NewRecord]] = [[] for _ in range(ground.partitions)]
        for row in some:
            by_partition[log.partition_of(row.key or b"", ground.partitions)].append(row)
        await preload.append(log, topic, by_partition)
        done += len(some)
        size += sum(len(row.value) for row in some)
        progress(done, rows)
    return size // rows


def running_rows(prefix: str, count: int) -> Iterator[NewRecord]:
    """Return encoded rows of ceremonies just started: the first step's agent is asked, and its timer runs."""
    pinned, kinds, now = PUBLISHES.definition(), all_kinds(), int(time.time() * 1000)
    for number in range(count):
        start = preload.start(pinned, f"{prefix}-{number}")
        row = decide(None, start, Origin(0, number, now), pinned, kinds).row
        if row is None:
            raise BenchmarkFailed(f"the fold refuses the start of {start.instance_id}")
        yield NewRecord(start.instance_id.encode(), encode_instance(row))


async def _read(ground: Ground) -> float:
    """Return the seconds that the driver's reader takes for both changelogs."""
    topics: Sequence[str] = [prefixed(ground.name, changelog(table)) for table in (CEREMONIES, DEFINITIONS)]
    tps = [TopicPartition(topic, number) for topic in topics for number in range(ground.partitions)]
    rows: dict[TopicPartition, dict[bytes, bytes | None]] = {tp: {} for tp in tps}

    async def add(tp: TopicPartition, records: dict[bytes, bytes | None]) -> None:
        rows[tp].update(records)

    began = time.perf_counter()
    await Recovery([ground.kafka.bootstrap], HostClock()).read(tps, add)
    return time.perf_counter() - began
