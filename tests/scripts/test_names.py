"""The check of names finds each kind of planted mistake, and nothing in a sound repository or in this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import names

ERRORS = "class CeremonyError(Exception): ...\n\n\nclass LogFailed(CeremonyError): ...\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository without a mistake."""
    for package in names.PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "ports/errors.py").write_text(ERRORS)
    (tmp_path / "bridge/peers.py").write_text('raise LogFailed("log_failed", "the file: gone")\n')
    return tmp_path


def test_a_sound_repository_has_no_findings(root: Path) -> None:
    assert not names.check(root)


def test_a_class_name_is_found_wherever_it_is_defined_again(root: Path) -> None:
    """Also a private one, and one inside a function."""
    (root / "tables/one.py").write_text("class _Stored: ...\n")
    (root / "streams/two.py").write_text("def made():\n    class _Stored: ...\n")
    (finding,) = names.check(root)
    assert finding.startswith("tables/one.py:1: class _Stored is also defined at streams/two.py:2;")


@pytest.mark.parametrize("base", ["Exception", "ValueError", "RuntimeError"])
def test_an_exception_beside_the_tree_is_found(root: Path, base: str) -> None:
    (root / "steps/one.py").write_text(f"class Broken({base}): ...\n\n\nclass Worse(Broken): ...\n")
    assert names.check(root) == [
        "steps/one.py:1: exception Broken does not derive from CeremonyError",
        "steps/one.py:4: exception Worse does not derive from CeremonyError",
    ]


def test_an_exception_below_another_of_the_tree_is_in_the_tree(root: Path) -> None:
    (root / "steps/one.py").write_text("class Fenced(errors.LogFailed, ValueError): ...\n")
    assert not names.check(root)


@pytest.mark.parametrize("message", ['"log_failed: gone"', 'f"log_failed: {path} is gone"'])
def test_a_code_in_a_message_is_found(root: Path, message: str) -> None:
    (root / "steps/one.py").write_text(f"raise ValueError({message})\n")
    (finding,) = names.check(root)
    assert finding.startswith("steps/one.py:1: the code is an argument of its own")


def test_a_private_exception_may_stand_beside_the_tree(root: Path) -> None:
    (root / "steps/one.py").write_text("class _Stop(Exception): ...\n")
    assert not names.check(root)


def test_a_field_in_front_of_a_message_is_no_code(root: Path) -> None:
    """The code stands before it, as an argument."""
    (root / "steps/one.py").write_text('raise LogFailed("position_differs", "at_least: it is of another partition")\n')
    assert not names.check(root)


def test_a_generated_module_is_not_looked_at(root: Path) -> None:
    (root / "bridge/one_pb2.py").write_text("class LogFailed(Exception): ...\n")
    assert not names.check(root)
