"""The processes that are measured: a nats-server that syncs as it is told, a worker, and the CPU time of each."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

from nats import connect

from tests.services import NatsServer, free_port

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "specs" / "ceremonies"
READY_SECONDS = 60.0
STOP_SECONDS = 30.0
SAMPLE_SECONDS = 0.02
MACHINE = "machine"
"""What `CpuMeter.between` calls the whole machine."""
_TICKS = os.sysconf("SC_CLK_TCK")
_SYNC_ALWAYS = ", sync_interval: always"


class BenchmarkFailed(Exception):
    """A measurement could not be finished; the message says which process failed, and its last words."""


class MeasuredNats(NatsServer):
    """A nats-server that syncs every write, as the tests' own does, or every two minutes, which is NATS' default."""

    def __init__(self, folder: Path, *, sync_always: bool) -> None:
        super().__init__(folder)
        self._sync_always = sync_always

    def _command(self) -> Sequence[str]:
        command = super()._command()
        if not self._sync_always:
            config = Path(command[-1])
            text = config.read_text()
            if _SYNC_ALWAYS not in text:
                raise BenchmarkFailed(f"{config} does not say `{_SYNC_ALWAYS}`: NATS' default sync cannot be measured")
            config.write_text(text.replace(_SYNC_ALWAYS, ""))
        return command


class WorkerProcess:
    """One `ceremony serve`, all roles in one process."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self._grpc, self._http = free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "worker.log"
        environment = {
            **os.environ,
            "CEREMONIES_DIR": str(SPECS),
            "PLANNING_CEREMONY_GRPC_ADDR": self.address,
            "CEREMONY_HTTP_ADDR": f"127.0.0.1:{self._http}",
            "READINESS_REQUIRES": "log,tables,nats",
            "RAY_EXECUTOR_URL": f"127.0.0.1:{free_port()}",
            **{name: str(value) for name, value in settings.items()},
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streams.main", "serve"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """Of its gRPC server."""
        return f"127.0.0.1:{self._grpc}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises BenchmarkFailed when it has ended."""
        if self._process.poll() is not None:
            raise BenchmarkFailed(f"the worker ended with {self._process.returncode}: {self.last_words()}")

    async def ready(self) -> None:
        """Return when `/readyz` says so. Raises BenchmarkFailed."""
        deadline = time.monotonic() + READY_SECONDS
        while not await asyncio.to_thread(self._answers):
            self.check()
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"the worker is not ready after {READY_SECONDS:.0f} s: {self.last_words()}")
            await asyncio.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def last_words(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-6:])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that takes too long."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._process.kill()
        self._process.wait()


@contextlib.asynccontextmanager
async def worker(folder: Path, settings: Mapping[str, object]) -> AsyncIterator[WorkerProcess]:
    """A worker that is being started; stopped at the end."""
    process = WorkerProcess(folder, settings)
    try:
        yield process
    finally:
        await asyncio.to_thread(process.stop)


@contextlib.asynccontextmanager
async def nats(folder: Path, *, sync_always: bool) -> AsyncIterator[MeasuredNats]:
    """A fresh nats-server: no run finds messages of another. The stream that others make in the fleet is there."""
    server = MeasuredNats(folder, sync_always=sync_always)
    await asyncio.to_thread(server.start)
    try:
        connection = await connect(server.url)
        await connection.jetstream().add_stream(name="AGENT_RESPONSES", subjects=["agent.response.>"])
        await connection.close()
        yield server
    finally:
        await asyncio.to_thread(server.kill)


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
