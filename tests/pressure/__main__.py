"""Measures a worker's memory under pressure; exit 0 only if it stays below its bounds and nothing is lost."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.pressure.storm import Storm, Weathered, weather
from tests.pressure.waiting import Waited, Waiting, wait_and_recover
from tests.services import KafkaServer, running

# Bounds of the long forms: 200,000 starts at once; 50,000 waiting ceremonies of 20 KiB each, rows on disk.
STORM_MIB, WAITING_MIB = 1024.0, 512.0


def sound(result: Weathered, bound: float) -> bool:
    """Return whether all accepted starts ended, each refusal had a hint, and the peak is below the bound."""
    all_there = result.found == result.ended == result.starts
    polite = not result.without_hint and not result.other_answers
    return all_there and polite and result.peak_mib < bound


def kept(result: Waited, bound: float) -> bool:
    """Return whether all ended over two kills, and no worker's peak was above the bound."""
    return result.ended == result.ceremonies and max(result.peak_mib) < bound


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pressure", description=__doc__)
    parser.add_argument("--log", action="append", choices=["kafka", "sqlite"], default=[], help="default: both")
    parser.add_argument("--starts", type=int, default=200_000)
    parser.add_argument("--state", choices=["memory", "rocks"], help="ceremonies that wait, instead of starts")
    parser.add_argument("--ceremonies", type=int, default=50_000, help="ceremonies that wait, with --state")
    parser.add_argument("--bound", type=float, help="MiB the peak must stay under")
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds until all must have ended")
    options = parser.parse_args(arguments)
    return waiting(options) if options.state else storm(options)


def waiting(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="ceremony-waiting-") as name:
        folder = Path(name)
        with running(KafkaServer(folder / "kafka")) as kafka:
            asked = Waiting(options.ceremonies, patience=options.patience)
            result = wait_and_recover(asked, folder, kafka.bootstrap, CEREMONY_STATE=options.state)
    print(json.dumps({"state": options.state, **asdict(result)}), flush=True)
    return 0 if kept(result, options.bound or WAITING_MIB) else 1


def storm(options: argparse.Namespace) -> int:
    results = []
    for log in options.log or ["kafka", "sqlite"]:
        with tempfile.TemporaryDirectory(prefix="ceremony-pressure-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            url = f"sqlite:///{folder}/log.db"
            if log == "kafka":
                url = f"kafka://{stack.enter_context(running(KafkaServer(folder / 'kafka'))).bootstrap}"
            result = weather(Storm(options.starts, patience=options.patience), folder, url)
        print(json.dumps({"log": log, **asdict(result)}), flush=True)
        results.append(result)
    return 0 if all(sound(result, options.bound or STORM_MIB) for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
