"""The installed program runs in an empty folder: nothing of the checkout is needed, or found."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ceremony.version import VERSION
from tests.packaging.conftest import ROOT, Installed, environment

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
# Looks at a ceremony whose agents take some tenths of a second.
READS = 60
SCHEMA_LINE = "# yaml-language-server: $schema="


@contextlib.contextmanager
def _dev(tool: Installed, folder: Path) -> Iterator[dict[str, Any]]:
    """The installed `ceremony dev` in this folder, until the block ends; yields where everything is."""
    process = subprocess.Popen(
        [tool.program, "dev", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "-o", "json"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        readable, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
        line = process.stdout.readline() if readable else ""
        if not line:
            process.kill()
            pytest.fail(f"`ceremony dev` did not become ready:\n{process.communicate()[1]}")
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_SECONDS)
    assert process.returncode == 0


def _until_waiting_for_a_person(tool: Installed, instance_id: str) -> None:
    found: dict[str, Any] = {}
    for _ in range(READS):
        found = json.loads(tool.ceremony("get", instance_id, "-o", "json").stdout)
        if found["status"] == "WAITING_FOR_HUMAN":
            return
        time.sleep(0.1)
    pytest.fail(f"nobody was asked: {found}")


def test_version_is_that_of_the_distribution(tool: Installed) -> None:
    """`--version` says the release, and it is the one that the installer knows."""
    said = tool.ceremony("--version")
    assert said.stdout == f"ceremony {VERSION}\n"
    assert (tool.packages / f"ceremony_engine-{VERSION}.dist-info").is_dir()


def test_the_schema_is_printed(tool: Installed) -> None:
    """`ceremony schema` is the file of specs/."""
    said = tool.ceremony("schema")
    assert said.stdout == (ROOT / "specs/ceremony-definition.schema.json").read_text("utf-8")


def test_a_first_ceremony_is_written_is_valid_and_runs(tool: Installed, tmp_path: Path) -> None:
    """`init` writes a definition that editors find the schema of, that is valid, and that `dev` then serves."""
    tool = Installed(tool.prefix, tmp_path)
    written = tool.ceremony("init", "mine")
    assert written.returncode == 0, written.stderr
    file = tmp_path / "specs/ceremonies/mine.yaml"
    first = file.read_text().splitlines()[0]
    assert first.startswith(SCHEMA_LINE)
    schema = json.loads((file.parent / first.removeprefix(SCHEMA_LINE)).read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(file.read_text()))
    checked = tool.ceremony("validate", "specs/ceremonies")
    assert (checked.returncode, checked.stderr) == (0, "")
    with _dev(tool, tmp_path) as running:
        assert running["ceremonies_dir"] == str(file.parent)
        start = ("start", "mine", "--ceremony-id", "c1", "--story-id", "s1", "--input", "title=A first story")
        started = tool.ceremony(*start)
        assert started.returncode == 0, started.stderr
    again = tool.ceremony("init", "mine")
    assert again.returncode == 1
    assert again.stderr == "file_exists: specs/ceremonies/mine.yaml is there already; choose another name\n"


def test_dev_serves_the_examples_in_an_empty_folder(tool: Installed, tmp_path: Path) -> None:
    """Without definitions beside it `dev` runs the packaged ones, to the end, and its metrics name the release."""
    tool = Installed(tool.prefix, tmp_path)
    with _dev(tool, tmp_path) as running:
        assert Path(running["ceremonies_dir"]).is_relative_to(tool.packages)
        start = (
            "start",
            "backlog_review",
            "--ceremony-id",
            "sprint-7",
            "--story-id",
            "S-1",
            "--input",
            "title=Passkeys",
        )
        started = tool.ceremony(*start)
        assert started.returncode == 0, started.stderr
        _until_waiting_for_a_person(tool, "sprint-7:S-1")
        decided = tool.ceremony("approve", "sprint-7:S-1", "--actor", "anna", "--role", "PRODUCT_OWNER")
        assert decided.returncode == 0, decided.stderr
        ended = tool.ceremony("watch", "sprint-7:S-1")
        assert "COMPLETED" in ended.stdout, ended.stderr
        with urllib.request.urlopen(f"{running['http']}/metrics") as metrics:
            assert f'ceremony_build_info{{version="{VERSION}"}} 1.0' in metrics.read().decode()
    assert [entry.name for entry in tmp_path.iterdir()] == [".ceremony"]


def test_demo_runs_in_a_folder_of_somebody_elses_packages(tool: Installed, tmp_path: Path) -> None:
    """`demo` starts the program again as a child; a folder `tables` where it was started is not ours."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/__init__.py").write_text("raise SystemExit('another tables')\n")
    done = Installed(tool.prefix, tmp_path).ceremony("demo", "-n", "5", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] == 5


def test_the_examples_are_no_default_of_a_server(tool: Installed, tmp_path: Path) -> None:
    """`serve` with a folder that is missing says so, for a mount that failed must not bring other ceremonies."""
    settings = {"CEREMONY_LOG": f"sqlite://{tmp_path}/log.db", "PLANNING_CEREMONY_GRPC_ADDR": "127.0.0.1:0"}
    process = subprocess.Popen(
        [tool.program, "serve", "--http-addr", "127.0.0.1:0"],
        cwd=tmp_path,
        env=environment(**settings, NATS_URL="nats://127.0.0.1:1", RAY_EXECUTOR_URL="127.0.0.1:1"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "definitions_missing" in line or "serving" in line:
            break
    process.kill()
    process.communicate()
    assert "definitions_missing" in lines[-1], lines
    assert {"event": "starting", "version": VERSION}.items() <= json.loads(lines[0]).items(), lines
