"""The wheels that scripts/build makes, and the environments that they are installed into."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
UV = Path(sys.executable).parent / "uv"
RUN_SECONDS = 120
# A variable of these could lead an installed program back to the checkout, or to other settings.
NOT_INHERITED = (
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "CEREMONIES_DIR",
    "COVERAGE_PROCESS_CONFIG",
    "COVERAGE_FILE",
)


def environment(**more: str) -> dict[str, str]:
    """The environment of an installed program: nothing of the checkout or of this test run is in it."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | more


def run(*command: str | Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a folder, its output as text."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment(**more),
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the engine in it."""

    prefix: Path
    folder: Path
    """An empty one, to start the program in."""

    @property
    def program(self) -> Path:
        return self.prefix / "bin/ceremony"

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return next(self.prefix.glob("lib/python*/site-packages"))

    def ceremony(self, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return run(self.program, *arguments, folder=self.folder, **more)

    def pip(self, verb: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(UV, "pip", verb, "--python", self.prefix / "bin/python", *arguments, folder=self.folder)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which scripts/build leaves the wheels of both distributions."""
    folder = tmp_path_factory.mktemp("wheels")
    built = run(ROOT / "scripts/build", folder, folder=ROOT)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def tool(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The engine as `uv tool install` leaves it, in the versions of requirements.lock, from uv's cache or the index."""
    folder = tmp_path_factory.mktemp("tool")
    command: tuple[str | Path, ...] = (UV, "tool", "install", "--python", sys.executable, "--find-links", wheels)
    command = (*command, "--constraints", ROOT / "requirements.lock", "ceremony-engine")
    places = {"UV_TOOL_DIR": str(folder), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    done = run(*command, folder=folder, **places, UV_OFFLINE="true")
    if done.returncode != 0:
        done = run(*command, folder=folder, **places)
    assert done.returncode == 0, done.stderr
    return Installed(folder / "ceremony-engine", tmp_path_factory.mktemp("empty"))


@pytest.fixture
def bare(wheels: Path, tmp_path: Path) -> Installed:
    """An environment of the engine without its dependencies: enough to see how the program begins."""
    made = Installed(tmp_path / "bare", tmp_path)
    done = run(UV, "venv", "--quiet", "--python", sys.executable, made.prefix, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = made.pip("install", "--no-index", "--no-deps", "--find-links", wheels, "ceremony-engine")
    assert done.returncode == 0, done.stderr
    return made
