"""Measures the CPU time of processes, and of the whole machine, for any span of wall time."""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SAMPLE_SECONDS = 0.02
# The name of the whole machine in `CpuMeter.between`.
MACHINE = "machine"
_TICKS = os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """Samples the CPU time of processes, so that a span of wall time can be evaluated afterwards."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._at: list[float] = []
        self._used: dict[str, list[float]] = {name: [] for name in (*pids, MACHINE)}
        self._stop = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[CpuMeter]:
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):  # it has ended and is not sampled any more
                used = {name: cpu_seconds(pid) for name, pid in self._pids.items()} | {MACHINE: machine_seconds()}
                self._at.append(time.time())
                for name, seconds in used.items():
                    self._used[name].append(seconds)

    def between(self, began: float, ended: float) -> dict[str, float]:
        """Return the CPU seconds of each process and of the whole machine between two wall-clock times."""
        first, last = bisect.bisect_left(self._at, began), bisect.bisect_left(self._at, ended)
        last = min(last, len(self._at) - 1)
        return {name: used[last] - used[min(first, last)] for name, used in self._used.items()}


def machine_seconds() -> float:
    """Return the CPU seconds of all processes so far, and those that the host took away (steal)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _waiting, hard, soft, steal = map(int, fields)
    return (user + nice + system + hard + soft + steal) / _TICKS


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process so far. Raises OSError when it is gone, or without /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_bytes(pid: int) -> float:
    """Return the resident memory of a process. Raises OSError when it is gone, or without /proc."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))
