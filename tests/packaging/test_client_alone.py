"""The client's wheel, alone in an empty environment: its README runs against a real engine, and is typed."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.world import World
from tests.packaging.conftest import ROOT, UV, Installed, run

README = (ROOT / "proto/README.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
# Everything that the client brings along.
DISTRIBUTIONS = {
    "fleet-planning-ceremony",
    "googleapis-common-protos",
    "grpcio",
    "grpcio-status",
    "protobuf",
    "typing-extensions",
}


@pytest.fixture(scope="module")
def alone(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with the client and its dependencies, from uv's cache or the index."""
    folder = tmp_path_factory.mktemp("alone")
    made = Installed(folder / "venv", tmp_path_factory.mktemp("empty"))
    done = run(UV, "venv", "--quiet", "--python", sys.executable, made.prefix, folder=folder)
    assert done.returncode == 0, done.stderr
    wanted: tuple[str | Path, ...] = ("--constraints", ROOT / "requirements.lock")
    wanted = (*wanted, *wheels.glob("fleet_planning_ceremony-*.whl"))
    done = made.pip("install", "--offline", *wanted)
    if done.returncode != 0:
        done = made.pip("install", *wanted)
    assert done.returncode == 0, done.stderr
    return made


def test_it_brings_little_along(alone: Installed) -> None:
    # specification 14.19
    listed = json.loads(alone.pip("list", "--format", "json").stdout)
    assert {one["name"] for one in listed} == DISTRIBUTIONS


async def test_the_readme_runs_as_it_is_written(alone: Installed, tmp_path: Path) -> None:
    """Each example in turn, by the interpreter of that environment; comments behind `print` are what is printed."""
    # specification 14.19, 14.24, 14.27
    assert len(EXAMPLES) == 4
    wanted = (
        "sprint-7:S-1\nCOMPLETED\n",
        "['sprint-7:S-1']\n",
        "INVALID_ARGUMENT invalid_id\nceremony_id invalid_id\nstory_id field_required\n",
        "StartStats(accepted=2, sent=1, pending=0, refused={'definition_unknown': 1}, dropped={})\n",
    )
    async with World(tmp_path / "world", f"sqlite://{tmp_path}/log.db") as world:
        address = f"127.0.0.1:{world.worker.grpc.port}"
        for example, printed in zip(EXAMPLES, wanted, strict=True):
            program = example.replace("localhost:50057", address)
            assert program != example
            done = await asyncio.to_thread(run, alone.prefix / "bin/python", "-I", "-c", program, folder=alone.folder)
            assert (done.returncode, done.stdout) == (0, printed), done.stderr
            assert printed.splitlines()[-1] in example or "error" in example
        assert (await world.get("sprint-7:S-2")).definition_name == "approval"
    assert (alone.folder / "starts.outbox").read_bytes() == b""


def test_the_readme_is_typed(alone: Installed, tmp_path: Path) -> None:
    """A strict mypy sees the types of the installed client in each example, and finds a wrong argument."""
    # specification 14.19
    for number, example in enumerate(EXAMPLES):
        (tmp_path / f"example_{number}.py").write_text(example)
    wrong = EXAMPLES[3].replace('story_id="S-2"', "story_id=2").replace("queue_size=1_000", 'queue_size="many"')
    (tmp_path / "wrong.py").write_text(wrong + "print(ceremonies.stats.lost)\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(alone.prefix / "bin/python")]
    done = subprocess.run(
        [*command, "--config-file=", "--cache-dir", str(tmp_path / "cache"), *sorted(map(str, tmp_path.glob("*.py")))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert all(line.startswith("wrong.py") for line in errors), done.stdout
    assert {re.findall(r"\[([a-z-]+)\]$", line)[0] for line in errors} == {"arg-type", "attr-defined"}, done.stdout
    assert len(errors) == 3
