"""Profiles a worker: py-spy's samples of the running process, added up by the code that did the work."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.processes import BenchmarkFailed

# Samples a second.
RATE = 200
# Part of a frame's file → the owner that is charged; C functions are charged to the Python line that calls them.
OWNERS = (
    ("aiokafka", "aiokafka (client)"),
    ("nats/", "nats-py (client)"),
    ("tables/", "tables (the fold)"),
    ("steps/", "steps (their agents)"),
    ("streams/transport/", "streams/transport (the driver)"),
    ("streams/", "streams (ceremony agent, codecs)"),
    ("bridge/", "bridge"),
    ("asyncio/", "asyncio"),
    ("faust/", "Faust and mode"),
    ("mode/", "Faust and mode"),
    ("prometheus_client/", "prometheus"),
    ("uvloop/", "uvloop and the kernel: sockets, callbacks"),
)

_LOOP = "Runner.run (asyncio/runners.py)"


class Profile(NamedTuple):
    """Shares of the samples, from 0 to 1."""

    samples: int
    by_owner: dict[str, float]
    self_time: dict[str, float]
    total_time: dict[str, float]


class Profiler:
    """Samples a process with py-spy from `begin` to `finish`; without a file it does nothing."""

    def __init__(self, pid: int, file: Path | None) -> None:
        self._pid = pid
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Attach at the first call. Raises BenchmarkFailed if py-spy is not installed."""
        if self._file is None or self._process is not None:
            return
        program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
        if program is None:
            raise BenchmarkFailed("--profile needs py-spy, which is among the development dependencies")
        command = [program, "record", "-p", str(self._pid), "-r", str(RATE), "-f", "raw", "-o", str(self._file)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    async def finish(self) -> Profile | None:
        """Stop sampling and read the samples. Raises BenchmarkFailed if py-spy may not attach."""
        process, file = self._process, self._file
        if process is None or file is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, 20)
        process.kill()
        if not file.exists() or not file.stat().st_size:
            words = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
            raise BenchmarkFailed(f"py-spy recorded nothing: {words[-300:]}")
        return read_profile(file)


def read_profile(file: Path) -> Profile:
    """Add up py-spy's raw stacks, one `frame;frame;… count` a line, from the event loop on.

    Other threads are left out: gRPC's threads wait in C, which py-spy takes for work.
    """
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    owners: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, counted = line.rpartition(" ")
        frames, count = [_function(frame) for frame in stack.split(";") if frame], int(counted)
        if _LOOP not in frames:
            continue
        frames = frames[frames.index(_LOOP) + 1 :] or ["uvloop and C code called by it (uvloop/)"]
        own[frames[-1]] += count
        owners[_owner(frames)] += count
        for frame in set(frames):
            total[frame] += count
    samples = sum(own.values())
    return Profile(samples, _shares(owners, samples), _shares(own, samples), _shares(total, samples))


def _function(frame: str) -> str:
    """Return a frame `name (file:line)` without its line."""
    name, _, where = frame.rpartition(" (")
    return f"{name} ({where.rstrip(')').rpartition(':')[0]})"


def _owner(frames: list[str]) -> str:
    return next((owner for part, owner in OWNERS if f"({part}" in frames[-1] or f"/{part}" in frames[-1]), "other")


def _shares(counts: Counter[str], samples: int) -> dict[str, float]:
    return {name: count / samples for name, count in counts.most_common(40)}
