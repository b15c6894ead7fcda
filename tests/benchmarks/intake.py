"""Starts through the front: the highest rate, and the latency at half of that rate."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tests.benchmarks import warm_up
from tests.benchmarks.intake_load import Measured, Options
from tests.benchmarks.layouts import Layout
from tests.benchmarks.meter import CpuMeter
from tests.benchmarks.processes import ROOT, BenchmarkFailed
from tests.benchmarks.site import Ground, Site, log_of, started
from tests.benchmarks.throughput import Progress

# Starts a second at which the engine is called.
WANTED = 3000
CALLERS = 128
# The uncounted beginning of each phase, which opens new connections.
SKIP_SECONDS = 1.0
REST_SECONDS = 1.0
QUIET_SECONDS = 180.0
FOLDED = "ceremony_commands_total"


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of calls."""

    asked: float | None
    """Starts a second; None for as many as the engine takes."""
    measured: Measured
    worker_us: float
    """CPU of the workers in µs for an accepted start and everything that followed from it."""


@dataclass(frozen=True, slots=True)
class IntakeRun:
    """Phases of starts of one definition."""

    definition: str
    layout: Layout
    callers: int
    most: Phase
    half_of_most: Phase
    half_of_wanted: Phase


async def measure(ground: Ground, definition: str, seconds: float, progress: Progress) -> IntakeRun:
    """Raises BenchmarkFailed."""
    async with log_of(ground) as log, started(ground, log) as site:
        await warm_up.shared(site)
        await warm_up.warm_up(site)
        await _phase(site, definition, "warm", REST_SECONDS, None)
        progress(1, 4)
        most = await _phase(site, definition, "most", seconds, None)
        progress(2, 4)
        half_of_most = await _phase(site, definition, "half", seconds, most.measured.per_s / 2)
        progress(3, 4)
        half_of_wanted = await _phase(site, definition, "wanted", seconds, WANTED / 2)
        return IntakeRun(definition, ground.layout, CALLERS, most, half_of_most, half_of_wanted)


async def _phase(site: Site, definition: str, name: str, seconds: float, rate: float | None) -> Phase:
    options = Options(
        addresses=list(_fronts(site)),
        definition=definition,
        name=f"{site.ground.name}-{name}",
        seconds=seconds + SKIP_SECONDS,
        skip_seconds=SKIP_SECONDS,
        callers=CALLERS if rate is None else 0,
        rate=rate or 0.0,
    )
    meter = CpuMeter({f"{number}": worker.pid for number, worker in enumerate(site.workers)})
    with meter.running():
        measured = await asyncio.to_thread(_call, options)
    for worker in site.workers:
        worker.check()
    used = meter.between(measured.began, measured.ended)
    cpu = sum(used[f"{number}"] for number in range(len(site.workers)))
    await _quiet(site)
    return Phase(rate, measured, 1e6 * cpu / measured.accepted)


async def _quiet(site: Site) -> None:
    """Return once nothing is folded any more, so that the next phase begins without a backlog."""
    before = -1.0
    deadline = time.monotonic() + QUIET_SECONDS
    while (folded := sum(said.get(FOLDED, 0) for said in await warm_up.metrics(site))) != before:
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"commands are still folded {QUIET_SECONDS:.0f} s after the last start")
        before = folded
        await asyncio.sleep(REST_SECONDS)


def _fronts(site: Site) -> Sequence[str]:
    """Addresses of the workers with the role engine, which have a front."""
    return [
        worker.address
        for worker, roles in zip(site.workers, site.ground.layout.roles, strict=True)
        if "engine" in roles.split(",")
    ]


def _call(options: Options) -> Measured:
    """Run the callers in a process of their own; in the benchmark's loop they would wait for each other."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.intake_load"],
        input=msgspec.json.encode(options),
        capture_output=True,
        cwd=ROOT,
        timeout=options.seconds + 60,
        check=False,
    )
    if done.returncode:
        raise BenchmarkFailed(f"the callers ended with {done.returncode}: {done.stderr[-500:].decode()}")
    return msgspec.json.decode(done.stdout, type=Measured)
