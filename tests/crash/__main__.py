"""The figures of the proof: `python -m tests.crash [--seed N] [--kills] [--all | --points N] [--defects]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.crash.defects import DEFECTS, planted
from tests.crash.proof import Plays, Proof, report, strided
from tests.crash.stage import stage


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: another one each time")
    parser.add_argument("--kills", action="store_true", help="kill at every await, and nothing else")
    parser.add_argument("--all", action="store_true", help="every point for the long outage, too")
    parser.add_argument("--points", type=int, default=150, help="points of the long outage at most, without --all")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--zombies", type=int, default=200)
    parser.add_argument("--defects", action="store_true", help="plant each defect, and find it")
    return parser.parse_args()


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"    {what}: {time.monotonic() - began:.1f} s", flush=True)


def played(what: str, plays: Plays) -> bool:
    """Print the report of these plays; return True if nothing was wrong."""
    with timed(what):
        done = report(plays)
        print(f"{what}: {done}")
    return not done.found


def _killed(proof: Proof) -> bool:
    return played("killed at every await", proof.every())


def defects(proof: Proof) -> bool:
    """Plant each defect; return True if all were found."""
    found = []
    for name in DEFECTS:
        with planted(name):
            done = report(proof.finding(name), enough=1)
        print(f"{'found' if done.found else 'NOT FOUND'} by play {done.plays}: {name}")
        found.append(bool(done.found))
    return all(found)


def main() -> int:
    told = arguments()
    print(f"seed {told.seed}")
    with stage():
        proof = Proof(told.seed)
        if told.kills:
            return 0 if _killed(proof) else 1
        trace = proof.trace()
        print(f"{proof.points} points; tracing counts {trace.awaits} awaits, at {len(trace.sites)} lines:")
        for site, times in sorted(trace.sites.items()):
            print(f"    {times:5} {site}")
        stride, offset = (1, 0) if told.all else strided(told.seed, len(proof.deaths), told.points)
        fine = [
            proof.points == trace.awaits,
            _killed(proof),
            played("killed, and away for 15 minutes", proof.away(stride, offset)),
            played("killed twice", proof.pairs(told.pairs)),
            played("a zombie", proof.zombies(told.zombies)),
        ]
        if told.defects:
            fine.append(defects(proof))
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
