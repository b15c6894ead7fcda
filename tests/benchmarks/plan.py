"""The plan of a benchmark: the options of `scripts/bench`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.benchmarks.engines import OtherEngine, parse_engine
from tests.benchmarks.layouts import Layout, parse_layouts

LIVE = (10.0, 40.0, 100.0, 200.0, 250.0)
QUICK = {
    "repetitions": 1,
    "ceremonies": 2000,
    "synced_ceremonies": 200,
    "asked_ceremonies": 400,
    "serial": 30,
    "rows": 20_000,
    "starts": ("approval",),
    "start_layouts": 1,
    "start_seconds": 3.0,
    "live": (10.0, 40.0),
    "live_seconds": 4.0,
    "live_synced": False,
}
FULL = {
    "repetitions": 3,
    "ceremonies": 10_000,
    "synced_ceremonies": 800,
    "asked_ceremonies": 3000,
    "serial": 200,
    "rows": 100_000,
    "starts": ("approval", "merge_chain"),
    "start_layouts": None,
    "start_seconds": 10.0,
    "live": LIVE,
    "live_seconds": 15.0,
    "live_synced": True,
}
LAYOUTS = "1,2"
PARTS = ("live", "throughput", "serial", "recovery", "starts")
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Plan:
    """Parts, sizes and settings of a benchmark."""

    parts: Sequence[str]
    repetitions: int
    ceremonies: int
    synced_ceremonies: int
    asked_ceremonies: int
    """Ceremonies whose steps ask their agent."""
    serial: int
    rows: int
    """Rows that a worker recovers."""
    starts: Sequence[str]
    """Definitions whose starts are measured."""
    start_layouts: int | None
    """Number of layouts that are measured with starts; None for all."""
    start_seconds: float
    """Length of each phase of starts."""
    live: Sequence[float]
    """Rates of live ceremonies, starts a second, rising; those after the first that is not kept up are left out."""
    live_seconds: float
    """Length of a rate."""
    live_synced: bool
    """Measure again with a NATS that syncs each message."""
    live_partitions: int
    live_layouts: Sequence[Layout]
    partitions: int
    layouts: Sequence[Layout]
    flush: bool
    engines: Sequence[OtherEngine]
    profile: Path | None


def plan_of(given: argparse.Namespace) -> Plan:
    amounts: dict[str, Any] = {**(QUICK if given.quick else FULL)}
    for name in ("repetitions", "ceremonies", "live", "live_seconds"):
        if getattr(given, name) is not None:
            amounts[name] = getattr(given, name)
    return Plan(
        **amounts,
        parts=given.only,
        live_partitions=given.live_partitions,
        live_layouts=given.live_workers,
        partitions=given.partitions,
        layouts=given.workers,
        flush=given.flush,
        engines=given.engine,
        profile=given.profile,
    )


def parsed(arguments: Sequence[str], description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=description)
    add = parser.add_argument
    add("-o", "--output", choices=["table", "json"], default="table", help="JSON goes to stdout")
    add("--quick", action="store_true", help="one repetition of everything, fewer ceremonies")
    add("--repetitions", type=int, help=f"throughput and recovery runs (default {FULL['repetitions']})")
    add("--ceremonies", type=int, help=f"ceremonies of a throughput run (default {FULL['ceremonies']})")
    add(
        "--live",
        type=_or_refused(_rates),
        metavar="LIST",
        help=f"rates of live backlog reviews, starts a second (default {_told(LIVE)})",
    )
    add("--live-seconds", type=float, help=f"length of each of these rates (default {FULL['live_seconds']:g})")
    add("--live-partitions", type=int, default=12, help="partitions of every topic in live runs (default 12)")
    add(
        "--live-workers",
        type=_or_refused(parse_layouts),
        default="1",
        metavar="LIST",
        help="workers of live runs on Kafka, as in --workers (default 1)",
    )
    add("--partitions", type=int, default=4, help="partitions of every topic (default 4)")
    add(
        "--workers",
        type=_or_refused(parse_layouts),
        default=LAYOUTS,
        metavar="LIST",
        help="numbers of workers that share the partitions, each a row, the best the headline: `1,2` (the default),"
        " or roles apart, as in `2,engine+bridge`",
    )
    add(
        "--flush",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Kafka syncs every append to disk (flush.messages=1), for the engine and for the bare loops (default)",
    )
    add(
        "--engine",
        type=_or_refused(parse_engine),
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="run this command too, which prints the figures of another engine as JSON for the table;"
        " repeatable; docs/benchmarks.md has the format",
    )
    add(
        "--only",
        type=_or_refused(_parts),
        default=PARTS,
        metavar="LIST",
        help=f"some of {','.join(PARTS)}; without it all, and other engines are always measured",
    )
    add("--plot", type=Path, metavar="FILE", help="draw the figures, for example to bench.svg")
    add(
        "--profile",
        type=Path,
        metavar="FILE",
        help="sample the first worker's last throughput run with py-spy, raw, to FILE",
    )
    given = parser.parse_args(arguments)
    if (most := max(layout.members("engine") for layout in given.workers)) > given.partitions:
        parser.error(f"--workers: {most} engines cannot share {given.partitions} partitions; --partitions gives more")
    return given


def _rates(text: str) -> Sequence[float]:
    """Return the rates in rising order. Raises ValueError."""
    rates = sorted(float(part) for part in text.split(","))
    if rates[0] <= 0:
        raise ValueError(f"{text}: rates above 0 are wanted")
    return rates


def _told(rates: Sequence[float]) -> str:
    return ",".join(f"{rate:g}" for rate in rates)


def _parts(text: str) -> Sequence[str]:
    """Return the parts in the order in which they are measured. Raises ValueError."""
    named = {part.strip() for part in text.split(",")}
    if unknown := sorted(named - set(PARTS)):
        raise ValueError(f"{', '.join(unknown)}: some of {', '.join(PARTS)} are wanted")
    return [part for part in PARTS if part in named]


def _or_refused(parse: Callable[[str], Parsed]) -> Callable[[str], Parsed]:
    """Turn a ValueError into argparse's own error, so that argparse prints its message."""

    def type_(text: str) -> Parsed:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return type_
