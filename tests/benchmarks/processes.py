"""The measured processes: a nats-server with a choice of sync, and workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

from nats import connect
from prometheus_client.parser import text_string_to_metric_families

from tests.benchmarks.layouts import ONE, Layout
from tests.services import NatsServer, free_port

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "specs" / "ceremonies"
READY_SECONDS = 60.0
STOP_SECONDS = 30.0
_SYNC_ALWAYS = ", sync_interval: always"


class BenchmarkFailed(Exception):
    """A measurement could not be finished; the message names the process and ends with its last words."""


class MeasuredNats(NatsServer):
    """A nats-server that syncs every write, or every two minutes, which is NATS' default."""

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
    """One `ceremony serve`, with all roles unless the settings name some."""

    def __init__(self, folder: Path, settings: Mapping[str, object], name: str = "worker") -> None:
        self._grpc, self._http = free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._name = name
        self._log = folder / f"{name}.log"
        environment = {
            **os.environ,
            "CEREMONIES_DIR": str(SPECS),
            "PLANNING_CEREMONY_GRPC_ADDR": self.address,
            "CEREMONY_HTTP_ADDR": f"127.0.0.1:{self._http}",
            "READINESS_REQUIRES": "log,tables,nats",
            "CEREMONY_STATE_DIR": str(folder / f"{name}-state"),
            "RAY_EXECUTOR_URL": f"127.0.0.1:{free_port()}",
            **{name: str(value) for name, value in settings.items()},
        }
        self.began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ceremony_engine", "serve"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """Address of its gRPC server."""
        return f"127.0.0.1:{self._grpc}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise BenchmarkFailed if the process has ended."""
        if self._process.poll() is not None:
            raise BenchmarkFailed(f"{self._name} ended with {self._process.returncode}: {self.last_words()}")

    async def ready(self) -> None:
        """Return when `/readyz` is 200. Raises BenchmarkFailed."""
        deadline = time.monotonic() + READY_SECONDS
        while not await asyncio.to_thread(self._answers):
            self.check()
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{self._name} is not ready after {READY_SECONDS:.0f} s: {self.last_words()}")
            await asyncio.sleep(0.05)

    async def metrics(self) -> Mapping[str, float]:
        """Return the sum of each metric over its labels, from `/metrics`. Raises BenchmarkFailed."""
        try:
            return summed(await asyncio.to_thread(self._get, "/metrics"))
        except OSError as error:
            raise BenchmarkFailed(f"{self._name} tells no metrics: {error}") from error

    def _answers(self) -> bool:
        try:
            self._get("/readyz")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def last_words(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-6:])

    def freeze(self) -> None:
        """Stop the process (SIGSTOP) until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process with SIGTERM, or with SIGKILL when that takes too long."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._process.kill()
        self._process.wait()


@contextlib.asynccontextmanager
async def workers(
    folder: Path, settings: Mapping[str, object], layout: Layout = ONE
) -> AsyncIterator[list[WorkerProcess]]:
    """Start the workers of a layout without waiting; stop them at the end."""
    running: list[WorkerProcess] = []
    try:
        for number, roles in enumerate(layout.roles, start=1):
            name = "worker" if len(layout.roles) == 1 else f"worker-{number}"
            running.append(WorkerProcess(folder, {**settings, "CEREMONY_ROLE": roles}, name))
        yield running
    finally:
        await asyncio.gather(*(asyncio.to_thread(process.stop) for process in running))


@contextlib.asynccontextmanager
async def worker(folder: Path, settings: Mapping[str, object]) -> AsyncIterator[WorkerProcess]:
    """Start one worker with all roles without waiting; stop it at the end."""
    async with workers(folder, settings) as (process,):
        yield process


@contextlib.contextmanager
def frozen(processes: Sequence[WorkerProcess]) -> Iterator[None]:
    """Freeze all workers for the duration of the block."""
    try:
        for process in processes:
            process.freeze()
        yield
    finally:
        for process in processes:
            process.thaw()


@contextlib.asynccontextmanager
async def nats(folder: Path, *, sync_always: bool) -> AsyncIterator[MeasuredNats]:
    """Start a fresh nats-server, so that no run finds messages of another, with the fleet's own stream."""
    server = MeasuredNats(folder, sync_always=sync_always)
    await asyncio.to_thread(server.start)
    try:
        connection = await connect(server.url)
        await connection.jetstream().add_stream(name="AGENT_RESPONSES", subjects=["agent.response.>"])
        await connection.close()
        yield server
    finally:
        await asyncio.to_thread(server.kill)


def summed(exposition: str) -> dict[str, float]:
    """Parse Prometheus' text into the sum of each sample over its labels; histograms give count and sum."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
