"""Runs all tests as two pytest processes side by side: one mostly waits, the other mostly computes.

Tests that wait for session timeouts, outages and elections leave a core idle that the others can use. The computing
process writes to the terminal; the output of the waiting one follows when the first has ended, so lines do not mix.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

# They run one after the other, so that none of them is measured under the load of another.
WAITING = (
    "tests/bridge/projection",
    "tests/e2e",
    "tests/faults",
    "tests/poison",
    "tests/transport/conformance",
    "tests/workers",
)
# A killed server comes back to its port, so the other process must not give it to a test meanwhile.
PORTS = {"waiting": "15000-23499", "computing": "23500-32000"}
# The broker of one process has Kafka's own settings, and so creates topics that somebody asks for; the other's has not.
DEFAULTS = {"waiting": "1", "computing": ""}
LOG = Path("build/tests-waiting.log")
END_SECONDS = 60.0
POLL_SECONDS = 0.2

Process = subprocess.Popen[bytes]


def start(part: str, arguments: tuple[str, ...], output: IO[bytes] | None) -> Process:
    """Start pytest under coverage, in a session of its own: it gets Ctrl-C once, from this program."""
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", "--durations=5", *arguments]
    environment = {**os.environ, "CEREMONY_TEST_PORTS": PORTS[part], "CEREMONY_TEST_KAFKA_DEFAULTS": DEFAULTS[part]}
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def follow(process: Process, log: IO[bytes]) -> None:
    """Print the log's content and every addition, until the process has ended."""
    while True:
        ended = process.poll() is not None
        sys.stdout.buffer.write(log.read())
        sys.stdout.flush()
        if ended:
            return
        time.sleep(POLL_SECONDS)


def end(processes: list[Process]) -> None:
    """Send SIGINT to running processes so that they clean up, and kill those that do not end."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + END_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def main() -> int:
    """Return exit code 0 if both processes do, 130 if interrupted, else the first other code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    LOG.parent.mkdir(exist_ok=True)
    processes: list[Process] = []
    with LOG.open("wb") as written, LOG.open("rb") as read:
        try:
            processes.append(start("waiting", WAITING, written))
            processes.append(start("computing", tuple(f"--ignore={folder}" for folder in WAITING), None))
            processes[1].wait()
            print(f"== {' '.join(WAITING)}", flush=True)
            follow(processes[0], read)
        except KeyboardInterrupt:
            end(processes)
            with contextlib.suppress(BrokenPipeError):
                print("interrupted", file=sys.stderr)
            return 130
        finally:
            end(processes)
    return next((process.returncode for process in processes if process.returncode), 0)


if __name__ == "__main__":
    sys.exit(main())
