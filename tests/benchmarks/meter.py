"""The CPU time of the processes that are measured, and of the whole machine, for any span of wall time."""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SAMPLE_SECONDS = 0.02
# What `CpuMeter.between` calls the whole machine.
MACHINE = "machine"
_TICKS = os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """Samples the CPU time of processes, so that it can be told for a span of wall time afterwards."""

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
            with contextlib.suppress(OSError):  # it has ended: nothing more is asked of it
                used = {name: cpu_seconds(pid) for name, pid in self._pids.items()} | {MACHINE: machine_seconds()}
                self._at.append(time.time())
                for name, seconds in used.items():
                    self._used[name].append(seconds)

    def between(self, began: float, ended: float) -> dict[str, float]:
        """CPU seconds of each process, and of the whole machine, between two wall-clock times."""
        first, last = bisect.bisect_left(self._at, began), bisect.bisect_left(self._at, ended)
        last = min(last, len(self._at) - 1)
        return {name: used[last] - used[min(first, last)] for name, used in self._used.items()}


def machine_seconds() -> float:
    """What all processes have used of all cores so far, and what the host has taken from them (steal)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _waiting, hard, soft, steal = map(int, fields)
    return (user + nice + system + hard + soft + steal) / _TICKS


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far. Raises OSError when it is gone, or where there is no /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_bytes(pid: int) -> float:
    """Memory of a process that is in RAM. Raises OSError when it is gone, or where there is no /proc."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))
