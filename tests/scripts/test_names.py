"""The check of the names of types finds planted duplicates, and none in this repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import names

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository in which each class has a name of its own."""
    for package in names.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "one.py").write_text(f"class Of{package.title()}: ...\n")
    return tmp_path


def test_a_sound_repository_has_no_findings(root: Path) -> None:
    assert not names.check(root)


def test_this_repository_has_no_findings() -> None:
    assert not names.check(REPOSITORY)


def test_a_name_defined_in_two_packages_is_found_with_both_places(root: Path) -> None:
    (root / "tables/two.py").write_text("class OfStreams: ...\n")
    assert names.check(root) == [
        "tables/two.py:1: class OfStreams is also defined at streams/one.py:1; give each its own name"
    ]


def test_a_private_name_and_a_class_inside_a_function_count_too(root: Path) -> None:
    (root / "steps/two.py").write_text("class _Stored: ...\n")
    (root / "bridge/two.py").write_text("def made():\n    class _Stored: ...\n")
    (finding,) = names.check(root)
    assert "steps/two.py:1: class _Stored is also defined at bridge/two.py:2" in finding


def test_an_alias_with_the_name_of_a_class_is_found(root: Path) -> None:
    (root / "steps/two.py").write_text("OfPorts = dict[str, int]\n")
    assert names.check(root) == [
        "ports/one.py:1: class OfPorts is also defined at steps/two.py:1; give each its own name"
    ]


def test_aliases_of_one_name_must_be_defined_alike(root: Path) -> None:
    (root / "steps/two.py").write_text("Rows = dict[str, int]\n")
    (root / "streams/two.py").write_text("Rows = dict[str, int]\n")
    assert not names.check(root)
    (root / "bridge/two.py").write_text("Rows = list[int]\n")
    assert names.check(root) == [
        "streams/two.py:1: alias Rows is also defined at bridge/two.py:1; give each its own name"
    ]


def test_a_constant_is_no_alias(root: Path) -> None:
    (root / "steps/two.py").write_text("ROWS = 1\n")
    (root / "bridge/two.py").write_text("ROWS = 2\n")
    assert not names.check(root)


def test_a_generated_module_is_not_read(root: Path) -> None:
    (root / "bridge/one_pb2.py").write_text("class OfStreams: ...\n")
    assert not names.check(root)
