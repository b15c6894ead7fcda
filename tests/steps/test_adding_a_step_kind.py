"""The step kind that docs/contributing.md adds works: one file, and one line in the registry.

Its code is taken from the page, so the page stays true. The packages are copied, and a process of its own imports the
copies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.uncounted
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/contributing.md"
PACKAGES = ("ports", "tables", "steps", "streams", "bridge", "ceremony")
PLAYER = Path(__file__).with_name("kind_player.py")
REGISTRY = "steps/registry.py"
LAST_LINE = "    Registered(publish.Publish(), publish.agent),\n"
NOTE = "Meet at noon."


def block(language: str) -> str:
    """Return the first fenced block in this language of the section that adds a step kind."""
    section = PAGE.read_text().split("## Add a step kind\n")[1].split("\n## ")[0]
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return found[0]


def kind_name() -> str:
    match = re.search(r'^    name: str = "(\w+)"', block("python"), re.MULTILINE)
    assert match, "the example kind has no name"
    return match[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages with the file of the new kind, and the definition that uses it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / f"steps/{kind_name()}.py").write_text(block("python"))
    definition = block("yaml")
    (tmp_path / "definitions").mkdir()
    (tmp_path / f"definitions/{yaml.safe_load(definition)['name']}.yaml").write_text(definition)
    return tmp_path


def register(copy: Path) -> None:
    """Add the page's line to the registry, and the kind to its import."""
    registry = (copy / REGISTRY).read_text()
    assert registry.count(LAST_LINE) == 1, "the registry has another form than docs/contributing.md says"
    registry = registry.replace(LAST_LINE, LAST_LINE + block("text"))
    registry = registry.replace("from steps import ", f"from steps import {kind_name()}, ", 1)
    (copy / REGISTRY).write_text(registry)


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the copies alone."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def validated(copy: Path) -> subprocess.CompletedProcess[str]:
    program = "from ceremony.program import main; main()"
    return run(copy, "-c", program, "validate", str(copy / "definitions"), "-o", "json")


def test_the_new_kind_plays_through_its_agent_to_the_end(copy: Path) -> None:
    """A worker on an embedded log loads the definition; the agent's outcome ends the ceremony."""
    register(copy)
    valid = validated(copy)
    assert valid.returncode == 0, valid.stdout + valid.stderr
    (name,) = (file.stem for file in (copy / "definitions").glob("*.yaml"))
    played = run(copy, str(PLAYER), str(copy / "definitions"), name, json.dumps({"note": NOTE}))
    assert played.returncode == 0, played.stderr
    result: dict[str, Any] = json.loads(played.stdout.splitlines()[-1])
    assert result == {
        "packages": str(copy),
        "status": "COMPLETED",
        "outputs": {"digest": {"sha256": hashlib.sha256(NOTE.encode()).hexdigest()}},
    }


def test_without_its_line_in_the_registry_the_definition_is_refused(copy: Path) -> None:
    refused = validated(copy)
    assert refused.returncode == 1
    (file,) = json.loads(refused.stdout)["files"]
    assert [problem["rule"] for problem in file["problems"]] == ["unknown_handler"]
