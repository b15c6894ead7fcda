"""Measures what a worker's memory comes to under pressure; exit 0 only if it stays under its bounds, nothing lost."""

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
from tests.services import KafkaServer, running

STORM_MIB = 1024.0
"""The bound of the long form: 200,000 starts at once."""


def sound(result: Weathered, bound: float) -> bool:
    """All accepted starts have ended, who was refused was told so with a hint, and the peak is under the bound."""
    all_there = result.found == result.ended == result.starts
    polite = not result.without_hint and not result.other_answers
    return all_there and polite and result.peak_mib < bound


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pressure", description=__doc__)
    parser.add_argument("--log", action="append", choices=["kafka", "sqlite"], default=[], help="default: both")
    parser.add_argument("--starts", type=int, default=200_000)
    parser.add_argument("--bound", type=float, default=STORM_MIB, help="MiB the peak must stay under")
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds until all must have ended")
    options = parser.parse_args(arguments)
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
    return 0 if all(sound(result, options.bound) for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
