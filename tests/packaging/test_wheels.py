"""The wheels carry all that the installed program needs, and nothing twice."""

from __future__ import annotations

import email
import os
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from ceremony.version import VERSION
from ceremony_engine import MARK, PACKAGES
from tests.packaging.conftest import ROOT, UV, run

ENGINE, PROTOS = f"ceremony_engine-{VERSION}", f"fleet_planning_ceremony-{VERSION}"


def _wheel(wheels: Path, name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl")


def _metadata(wheels: Path, name: str) -> Message:
    return email.message_from_bytes(_wheel(wheels, name).read(f"{name}.dist-info/METADATA"))


def test_scripts_build_leaves_one_wheel_of_each_distribution(wheels: Path) -> None:
    """A folder of wheels that can be given away as it is: no source archive, nothing of an earlier build."""
    assert sorted(file.name for file in wheels.iterdir()) == [
        f"{ENGINE}-py3-none-any.whl",
        f"{PROTOS}-py3-none-any.whl",
    ]


def test_every_module_of_the_checkout_is_in_the_engines_wheel(wheels: Path) -> None:
    """No package is forgotten, and no module that only lies about gets in."""
    wanted = {str(file.relative_to(ROOT)) for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    found = {name for name in _wheel(wheels, ENGINE).namelist() if name.endswith(".py")}
    assert found == wanted | {"ceremony_engine.py"}


def test_examples_and_schema_are_those_of_specs(wheels: Path) -> None:
    """specs/ is the one source: the wheel has copies of its definitions and of its schema."""
    wheel = _wheel(wheels, ENGINE)
    sources = [*(ROOT / "specs/ceremonies").glob("*.yaml"), ROOT / "specs/ceremony-definition.schema.json"]
    assert len(sources) > 1
    for source in sources:
        assert wheel.read(f"ceremony/{source.relative_to(ROOT)}") == source.read_bytes()


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        (ENGINE, [f"{package}/py.typed" for package in PACKAGES]),
        (PROTOS, ["fleet/planning_ceremony/py.typed", "fleet/ray_executor/py.typed"]),
    ],
)
def test_a_wheel_says_licence_authors_and_types(wheels: Path, name: str, typed: list[str]) -> None:
    """Both distributions name the licence and carry its text; type checkers may read their annotations."""
    wheel, metadata = _wheel(wheels, name), _metadata(wheels, name)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{name}.dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Author"] == "The ceremony engine authors"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert set(typed) <= set(wheel.namelist())


def test_engine_and_protos_are_released_together(wheels: Path) -> None:
    """The engine asks for exactly the protos that were built with it."""
    assert _metadata(wheels, PROTOS)["Version"] == _metadata(wheels, ENGINE)["Version"] == VERSION
    assert f"fleet-planning-ceremony=={VERSION}" in _metadata(wheels, ENGINE).get_all("Requires-Dist", [])


def test_every_package_has_the_mark_of_the_engine() -> None:
    """The entry looks for the mark in the docstring of each package that pyproject.toml ships."""
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.rstrip("*") for pattern in shipped} == set(PACKAGES)
    for name in PACKAGES:
        assert MARK in (ROOT / name / "__init__.py").read_bytes()


def test_the_source_archive_names_no_account_of_the_builder(tmp_path: Path) -> None:
    """setup.cfg is read: setuptools takes the owner of the archive's files from it."""
    command = (UV, "build", "--quiet", "--sdist", "--no-build-isolation", "--python", ROOT / ".venv/bin/python")
    built = run(*command, "--out-dir", tmp_path, ROOT, folder=ROOT)
    assert built.returncode == 0, built.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        members = archive.getmembers()
    assert {(member.uname, member.gname) for member in members} == {("root", "root")}
    assert any(member.name.endswith("/ceremony/specs/ceremonies/backlog_review.yaml") for member in members)
    assert not any(member.issym() for member in members), os.linesep.join(m.name for m in members if m.issym())
