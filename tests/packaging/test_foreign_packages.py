"""A package of another distribution under one of the engine's names is named at the start, in one line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ceremony_engine import PACKAGES
from tests.packaging.conftest import Installed

REMEDY = "install it in an environment of its own: uv tool install ceremony-engine\n"


def _foreign_wheel(folder: Path, package: str) -> Path:
    """A wheel of a distribution `foreign` with one package of this name, as PyTables is a wheel with `tables`."""
    file = folder / "foreign-1.0-py3-none-any.whl"
    info = "foreign-1.0.dist-info"
    contents = {
        f"{package}/__init__.py": '"""Hierarchical data sets."""\n',
        f"{package}/file.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(file, "w") as wheel:
        for name, text in contents.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*contents, f"{info}/RECORD"]))
    return file


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_before_ours_on_the_path_is_named(bare: Installed, tmp_path: Path, package: str) -> None:
    """One line, exit 1, no traceback. No dependency is installed here, so nothing heavy was imported before."""
    elsewhere = tmp_path / "elsewhere" / package / "__init__.py"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text('"""Hierarchical data sets."""\n')
    begun = bare.ceremony("--version", PYTHONPATH=str(tmp_path / "elsewhere"))
    assert begun.returncode == 1
    assert begun.stderr == (
        f"package_shadowed: `{package}` would be imported from {elsewhere}, and the engine's own is"
        f" {_own(bare, package)}; take the other one off PYTHONPATH, or {REMEDY}"
    )


def test_a_package_in_the_place_of_ours_is_named(bare: Installed, tmp_path: Path) -> None:
    """An installer writes over our files without a word, and takes them away when the other is removed."""
    assert bare.pip("install", "--no-index", _foreign_wheel(tmp_path, "tables")).returncode == 0
    overwritten = bare.ceremony("--version")
    assert overwritten.returncode == 1
    own = _own(bare, "tables")
    assert overwritten.stderr == f"package_overwritten: {own} is not the engine's but that of foreign; {REMEDY}"

    assert bare.pip("uninstall", "foreign").returncode == 0
    removed = bare.ceremony("--version")
    assert removed.returncode == 1
    assert removed.stderr == f"package_overwritten: {own} is not the engine's any more; {REMEDY}"


def test_a_distribution_with_other_names_is_no_matter(bare: Installed, tmp_path: Path) -> None:
    """It may share the environment: the program goes on, here to the first dependency that is not installed."""
    assert bare.pip("install", "--no-index", _foreign_wheel(tmp_path, "hierarchies")).returncode == 0
    begun = bare.ceremony("--version")
    assert "ModuleNotFoundError: No module named 'typer'" in begun.stderr
    assert "package_shadowed" not in begun.stderr
    assert "package_overwritten" not in begun.stderr


def _own(engine: Installed, package: str) -> Path:
    return (engine.packages / package / "__init__.py").resolve()
