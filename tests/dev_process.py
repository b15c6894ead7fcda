"""Runs `ceremony dev` as a process of its own, for tests of its use by people and programs."""

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

from ceremony.demo.engine import PROGRAM

ROOT_FOLDER = Path(__file__).parent.parent
CEREMONIES = ROOT_FOLDER / "specs/ceremonies"
READY_SECONDS = 60.0
STOP_SECONDS = 30.0
# Any free port: tests that run at the same time must not share the default one.
FREE = ("--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0")


def ceremony(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the program as a child, with stdout and stderr as text."""
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=options.pop("cwd", ROOT_FOLDER),
        env={**os.environ, "PYTHONPATH": str(ROOT_FOLDER), **options.pop("env", {})},
        **options,
    )


class DevProcess:
    """`ceremony dev` on one folder; it can be started, killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options: Sequence[str] = options
        self.running: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def server(self) -> str:
        return str(self.running["grpc"])

    def start(self) -> dict[str, Any]:
        """Start it and return the JSON object that it prints when it is ready."""
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
        """Send it a signal and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        try:
            _, self.said = self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self._process.returncode

    def kill(self) -> None:
        """Kill it with SIGKILL, so that its children get no signal."""
        if self._process is not None:
            self._process.kill()
            _, self.said = self._process.communicate(timeout=STOP_SECONDS)

    def end(self) -> None:
        """End everything that is left of it."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        with contextlib.suppress(ProcessLookupError, KeyError):
            os.kill(self.running["nats_pid"], signal.SIGKILL)


@contextlib.contextmanager
def dev_on(folder: Path, *options: str) -> Iterator[DevProcess]:
    """Run one within the block, and end it afterwards."""
    dev = DevProcess(folder, *options)
    try:
        dev.start()
        yield dev
        if dev._process is not None and dev._process.poll() is None:
            dev.stop()
    finally:
        dev.end()


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until_gone(pid: int, seconds: float = 20.0) -> bool:
    """Wait for the end of a process that is not our child; return whether it came in time."""
    deadline = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
