"""`ceremony dev` as a process of its own, for tests of what people and programs do with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ceremony.program import ROOT

ROOT_FOLDER = Path(__file__).parent.parent
CEREMONIES = ROOT_FOLDER / "specs/ceremonies"
READY_SECONDS = 60.0
STOP_SECONDS = 30.0
# Tests that run at the same time must not meet on the default port.
FREE = ("--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0")


def ceremony(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The program as a child, its stdout and stderr as text."""
    return subprocess.Popen(
        [*ROOT.program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=options.pop("cwd", ROOT_FOLDER),
        env={**os.environ, "PYTHONPATH": str(ROOT_FOLDER), **options.pop("env", {})},
        **options,
    )


class DevProcess:
    """One folder; start, kill and start again as often as you like."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options: Sequence[str] = options
        self.running: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def server(self) -> str:
        return str(self.running["grpc"])

    def start(self) -> dict[str, Any]:
        """Returns what it says when it is ready."""
        arguments = ("dev", str(self.folder), "--ceremonies-dir", str(CEREMONIES), *FREE, *self.options, "-o", "json")
        self._process = ceremony(*arguments)
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], READY_SECONDS)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            self.kill()
            raise AssertionError(f"`ceremony dev` did not become ready:\n{self.said}")
        self.running = json.loads(line)
        return self.running

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        try:
            _, self.said = self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self._process.returncode

    def kill(self) -> None:
        """Kill -9, and nothing is told to its children."""
        if self._process is not None:
            self._process.kill()
            _, self.said = self._process.communicate(timeout=STOP_SECONDS)

    def end(self) -> None:
        """Whatever is left of it."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        with contextlib.suppress(ProcessLookupError, KeyError):
            os.kill(self.running["nats_pid"], signal.SIGKILL)


@contextlib.contextmanager
def dev_on(folder: Path, *options: str) -> Iterator[DevProcess]:
    """One that runs, and is gone afterwards."""
    dev = DevProcess(folder, *options)
    try:
        dev.start()
        yield dev
        if dev._process is not None and dev._process.poll() is None:
            dev.stop()
    finally:
        dev.end()


def alive(pid: int) -> bool:
    """Whether such a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until_gone(pid: int, seconds: float = 20.0) -> bool:
    """Wait for the end of a process that is not our child."""
    deadline = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
