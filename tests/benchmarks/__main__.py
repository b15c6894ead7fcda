"""Measures the engine beside a bare aiokafka loop, on a Kafka and a nats-server of its own.

In one run, in turns: a bare loop of aiokafka that reads and writes the records of the same ceremonies, and one or more
workers on chains of five `merge` steps, each chain settled in one command, with the NATS bridge on; then five `publish`
steps, which ask their agent. Kafka syncs every append to disk, NATS as it does by default, and once more each message.
Then one ceremony at a time, on Kafka and on the embedded log, the recovery of many rows, starts through the front, and
other engines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks import figures, report
from tests.benchmarks.bench import Bench, Found
from tests.benchmarks.plan import Plan, parsed, plan_of
from tests.benchmarks.processes import BenchmarkFailed
from tests.services import KafkaServer, ServiceError, end_orphans


async def measure_all(plan: Plan, console: Console, found: Found) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="ceremony-bench-") as name, Progress(*columns, console=console) as screen:
        kafka = KafkaServer(Path(name) / "kafka")
        starting = screen.add_task("Kafka starts", total=None)
        await asyncio.to_thread(kafka.start)
        screen.update(starting, completed=1, total=1)
        try:
            await Bench(plan, Path(name), kafka, screen, found).run()
        finally:
            await asyncio.to_thread(kafka.kill)


def main() -> int:
    """Return exit code 1, with the reason on stderr, if a part failed; the others are shown all the same."""
    given = parsed(sys.argv[1:], __doc__ or "")
    plan, found = plan_of(given), Found()
    load_before = os.getloadavg()
    end_orphans()
    failure: Exception | None = None
    try:
        uvloop.run(measure_all(plan, Console(stderr=True), found))
    except (BenchmarkFailed, ServiceError, subprocess.TimeoutExpired) as error:
        failure = error
    tell(given, found, figures.summary(found, plan, load_before))
    if failure is not None:
        print(f"scripts/bench: {failure}", file=sys.stderr)
    return 0 if failure is None else 1


def tell(given: argparse.Namespace, found: Found, summary: dict[str, Any]) -> None:
    """Print table and line, and write the files that the options name."""
    console = Console(stderr=given.output == "json")
    profiles = [run.profile for runs in found.engine.values() for run in runs if run.profile is not None]
    report.show(console, figures.rows(found, summary), profiles[-1] if profiles else None)
    console.print(figures.line(found, summary), soft_wrap=True)
    if given.plot is not None:
        report.plot(given.plot, summary)
    if given.output == "json":
        told = {name: value._asdict() for name, value in summary["spreads"].items()}
        print(json.dumps({"summary": figures.line(found, summary), **summary, "spreads": told}, indent=2))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
