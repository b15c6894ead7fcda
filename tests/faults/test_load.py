"""The load of a fault run does not outlive it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services import free_port

PATIENCE = 30.0
RUNNER = """
import subprocess, sys, time
load = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(load.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.timeout(90)
def test_the_load_ends_with_a_runner_that_was_killed(tmp_path: Path) -> None:
    """Without anybody to answer, it must not go on calling until its time to drain is over."""
    starts = tmp_path / "starts"
    address = f"127.0.0.1:{free_port()}"
    load = [sys.executable, "-m", "tests.faults.load", "--address", address, "--starts", str(starts), "--name", "x"]
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, *load], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    pid = int(runner.stdout.readline())
    try:
        _within_patience(starts.exists, "the load has not begun")
        time.sleep(0.5)  # it has called, and was not answered
    finally:
        runner.kill()
        runner.communicate()
    _within_patience(lambda: not _runs(pid), "the load still runs")


def _within_patience(true: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
