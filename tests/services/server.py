"""A service as a child process on one folder, and its end when the process that started it is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tests.java_install import cache_folder

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05
# Below the range from which the system gives ports to clients. In that range a client that redials a dead server could
# get the server's own port, be connected to itself, and keep the server from coming back. Test processes that run side
# by side have a part each.
FIRST_PORT, LAST_PORT = map(int, os.environ.get("CEREMONY_TEST_PORTS", "15000-32000").split("-"))
STORE_PASSWORD = "only-for-tests"

AServer = TypeVar("AServer", bound="Server")

_given: set[int] = set()


class ServiceError(Exception):
    """A service ended or did not become ready in time; the message ends with the last lines of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on; never the same twice in one process."""
    while True:
        port = random.randrange(FIRST_PORT, LAST_PORT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


class Server:
    """One child process on one folder: start, stop, kill, and start again on the same data."""

    name = "server"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The address for people, with a password where the service needs one."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The file that the process writes its output to."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start and wait until the service answers. Raises ServiceError; nothing is left running then."""
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Start without waiting."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self._command()
        with self.log.open("ab") as log:
            # A session of its own, so that Ctrl-C in a terminal reaches only us, who then end it in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        _register(self._process.pid, self.folder)

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the service answers a request. Raises ServiceError when it ended or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self.pid is None:
                raise ServiceError(f"{self.name} ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} not ready after {seconds:.0f} s: {self._last_words()}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End in good order (SIGTERM), or by SIGKILL after 20 s. Harmless when it does not run."""
        try:
            if self._process is not None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)
        finally:  # also at a second Ctrl-C
            self.kill()

    def kill(self) -> None:
        """End at once (SIGKILL), as a power cut would. Harmless when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            _unregister(self._process.pid)
            self._process = None

    def pause(self) -> None:
        """Freeze the process (SIGSTOP) until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return f"{self.log}: " + " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])
        return str(self.log)

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


@contextlib.contextmanager
def running(server: AServer) -> Iterator[AServer]:
    """Start a server, and end it after the block in any case."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def end_orphans() -> None:
    """End servers whose starter was killed before it could end them; their folder identifies them."""
    for note in _notes().iterdir():
        with contextlib.suppress(OSError, ValueError):
            owner, folder = note.read_text().split("\n", 1)
            if Path(f"/proc/{owner}").exists():
                continue
            if folder.encode() in Path(f"/proc/{note.name}/cmdline").read_bytes():
                os.kill(int(note.name), signal.SIGKILL)
        note.unlink(missing_ok=True)


def _notes() -> Path:
    folder = cache_folder() / "running"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _register(pid: int, folder: Path) -> None:
    (_notes() / str(pid)).write_text(f"{os.getpid()}\n{folder}")


def _unregister(pid: int) -> None:
    (_notes() / str(pid)).unlink(missing_ok=True)
