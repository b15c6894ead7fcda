"""`ceremony serve` whose neighbours are down says so at once and while it waits, in a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.services import free_port

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"
# The minute is two seconds long.
SERVE = """
import sys
from streams import outages
outages.SUMMARY_SECONDS = 2.0
from ceremony import program
sys.exit(program.run(["serve"]))
"""


def environment(folder: Path) -> dict[str, str]:
    names = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: os.environ[name] for name in names if name in os.environ} | {
        "CEREMONY_LOG": f"sqlite:///{folder}/log.db",
        "CEREMONIES_DIR": str(ROOT / "specs/ceremonies"),
        "PLANNING_CEREMONY_GRPC_ADDR": f"127.0.0.1:{free_port()}",
        "CEREMONY_HTTP_ADDR": f"127.0.0.1:{free_port()}",
        "NATS_URL": f"nats://user:{SECRET}@127.0.0.1:{free_port()}",
        "RAY_EXECUTOR_URL": f"127.0.0.1:{free_port()}",
    }


def lines_of(stderr: IO[str], seen: list[str]) -> Iterator[dict[str, Any]]:
    for line in stderr:
        seen.append(line)
        yield json.loads(line)


def test_serve_says_at_once_which_neighbours_it_waits_for_and_while_it_waits(tmp_path: Path) -> None:
    """However many attempts fail. Every line is JSON, and none shows a password, nor does the list of processes."""
    # specification 30.6, 22.13
    command = [sys.executable, "-c", SERVE]
    seen: list[str] = []
    said: list[tuple[str, str]] = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as worker:
        try:
            assert worker.stderr is not None
            for line in lines_of(worker.stderr, seen):
                if line["event"].startswith("neighbour_"):
                    said.append((line["event"], line["neighbour"]))
                    assert line["waits"]
                if said.count(("neighbour_still_fails", "nats")) and said.count(
                    ("neighbour_still_fails", "ray_executor")
                ):
                    break
            arguments = Path(f"/proc/{worker.pid}/cmdline").read_text()
        finally:
            worker.terminate()
            rest = worker.communicate(timeout=30)[1]
    assert worker.returncode == 0
    for neighbour in ("nats", "ray_executor"):
        assert said.count(("neighbour_fails", neighbour)) == 1
        assert 1 <= said.count(("neighbour_still_fails", neighbour)) <= 2
    events = [json.loads(line)["event"] for line in seen]
    assert "serving" in events
    assert len(seen) < 30, seen
    assert SECRET not in "".join(seen) + rest + arguments
    assert all(value is not None for line in seen for value in json.loads(line).values())
