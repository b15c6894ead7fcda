"""Breaks the engine under load on a real Kafka and NATS and reports the results; exit 0 only if nothing was lost."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tests.faults import long, report
from tests.faults.plan import FULL, LONG, SHORT, Fault
from tests.faults.run import FaultRun, FaultRunFailed
from tests.services import KafkaServer, ServiceError, end_orphans, running

# Columns when the output is no terminal.
WIDE = 160


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    console = Console(stderr=True)
    if options.long:
        return _long(options, console)
    plan = FULL if options.full else SHORT
    plan = replace(plan, seed=random.randrange(2**31) if options.seed is None else options.seed)
    if options.rate:
        plan = replace(plan, starts_per_second=options.rate)
    faults = _faults(options) or plan.faults
    if not set(faults) <= set(plan.faults):
        console.print("the short plan does not have some of these faults: use --long", style="red")
        return 2
    before = os.getloadavg()[0]
    end_orphans()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceremony-faults-")))
        kafka = stack.enter_context(running(KafkaServer(folder / "kafka")))
        run = FaultRun(plan, folder / "run", kafka, lambda line: console.log(line, highlight=False))
        try:
            verdicts = run.run(faults)
        except (FaultRunFailed, ServiceError) as error:
            console.print(str(error), style="red", markup=False)
            return 1
        if options.record and run.last is not None:
            run.last.save(options.record)
    found = report.data(plan, verdicts, before)
    _keep(options, found)
    report.show(Console(), found)
    return 0 if found["sound"] else 1


def _long(options: argparse.Namespace, console: Console) -> int:
    end_orphans()
    faults = _faults(options) or LONG.faults
    try:
        long.run_missing(
            options.results,
            faults,
            options.runs,
            options.rate,
            lambda line: console.log(line, highlight=False),
            options.folder,
        )
    except KeyboardInterrupt:
        console.print("interrupted: the unfinished run is repeated next time")
    found = long.read(options.results)
    if options.plot:
        long.plot(options.plot, found)
    long.show(Console(width=None if sys.stdout.isatty() else WIDE), found)
    verdict = long.verdict(found, faults, options.runs)
    print(verdict)
    return 0 if verdict.startswith("SOUND") else 1


def _faults(options: argparse.Namespace) -> list[Fault]:
    return [Fault[name.upper()] for name in options.fault]


def _keep(options: argparse.Namespace, found: dict[str, object]) -> None:
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        report.plot(options.plot, found)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="5 kills, 3 SIGTERMs, 20 s outages; default: the short form"
    )
    parser.add_argument(
        "--long",
        action="store_true",
        help="every fault in several runs, for hours; runs in --results are not repeated: call it until it is complete",
    )
    parser.add_argument("--results", type=Path, default=Path("faults-results"), help="folder for the results of --long")
    parser.add_argument("--runs", type=int, help="runs of each fault in the long form; default: 3, of kills 10")
    parser.add_argument(
        "--fault", action="append", default=[], choices=[f.name.lower() for f in Fault], help="only these faults"
    )
    parser.add_argument("--seed", type=int, help="repeat the moments of an earlier run")
    parser.add_argument("--rate", type=float, help="starts per second")
    parser.add_argument("--folder", type=Path, help="keep logs and data here; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="write the results to this file, as JSON")
    parser.add_argument("--record", type=Path, help="write the last collected run to this file, for the checker")
    parser.add_argument("--plot", type=Path, help="draw the results to this file, for example faults.svg")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
