"""scripts/words.py finds docstrings that are no plain sentences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.words import PACKAGES

pytestmark = pytest.mark.uncounted
ROOT = Path(__file__).parents[2]
PLAIN = '"""Rows of a partition."""\n'


def words(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/words.py"), str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_plain_docstrings_pass(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    done = words(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("opening", ["Who takes part.", "Where rows live.", "Whether it ended.", "How it ends."])
def test_a_docstring_that_opens_with_a_question_word_is_named(tmp_path: Path, opening: str) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    (tmp_path / "odd.py").write_text(f'{PLAIN}\n\ndef rows() -> None:\n    """{opening}"""\n')
    done = words(tmp_path)
    assert done.returncode == 1
    assert f"odd.py:4: {opening}" in done.stderr


def test_a_docstring_with_what_is_named_with_its_class(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(f'{PLAIN}\n\nclass Row:\n    """The place of what is kept."""\n')
    done = words(tmp_path)
    assert done.returncode == 1
    assert "odd.py:4: The place of what is kept." in done.stderr


def test_one_what_among_many_words_passes(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(f'"""Rows, and what they hold.\n\n{"a word or two " * 250}\n"""\n')
    assert words(tmp_path).returncode == 0


def test_a_string_below_a_constant_of_a_module_is_named(tmp_path: Path) -> None:
    """A string below a field of a class explains the field and is right."""
    (tmp_path / "constant.py").write_text(f'{PLAIN}\nLIMIT = 3\n"""Rows of a batch."""\n')
    (tmp_path / "field.py").write_text(f'{PLAIN}\n\nclass Batch:\n    rows: int\n    """Of one partition."""\n')
    done = words(tmp_path)
    assert done.returncode == 1
    assert "constant.py:4" in done.stderr
    assert "field.py" not in done.stderr


def test_generated_modules_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "made_pb2.py").write_text('"""What was generated."""\n')
    assert words(tmp_path).returncode == 0


def test_a_report_never_fails(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text('"""What is here."""\n')
    done = words(tmp_path, "--report")
    assert done.returncode == 0
    assert "100.0 % of 1 docstrings open with a question word" in done.stdout


def test_a_single_file_is_checked(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text('"""Where rows live."""\n')
    assert "odd.py:1: Where rows live." in words(tmp_path / "odd.py").stderr


def test_a_place_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    assert words(tmp_path / "moved").returncode != 0


def test_each_module_of_the_repository_is_checked() -> None:
    """By default, or with the folders that `scripts/check` names in a second call."""
    command = ["git", "ls-files", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    places = {*PACKAGES, "tests", "scripts", "deploy"}
    assert [path for path in listed if path.split("/")[0] not in places] == []
