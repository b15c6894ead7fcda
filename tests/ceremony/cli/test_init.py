"""`ceremony init` writes a ceremony where `ceremony dev` looks for it; `dev` and `demo` fall back to the examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ceremony.cli.dev import to_start
from ceremony.cli.errors import Exit
from ceremony.packaged import examples_folder, folder_to_try, schema_text
from ceremony.program import run
from ceremony.version import VERSION
from tests.dev_process import CEREMONIES


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, in which the program is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CEREMONIES_DIR", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", [(), ("sprint_7",), ("7",), ("true",), ("x" * 60,)], ids=str)
def test_a_first_ceremony_is_valid_whatever_its_name(
    empty: Path, name: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """This includes names that YAML reads as a number or a boolean."""
    assert run(["init", *name]) == Exit.OK
    assert run(["validate", "specs/ceremonies"]) == Exit.OK
    said = capsys.readouterr()
    file = empty / "specs/ceremonies" / f"{name[0] if name else 'first_ceremony'}.yaml"
    assert file.read_text().startswith("# yaml-language-server: $schema=../ceremony-definition.schema.json\n")
    assert (empty / "specs/ceremony-definition.schema.json").read_text("utf-8") == schema_text()
    assert f"ceremony start {file.stem} " in said.out
    assert said.err == ""


def test_the_name_of_an_example_copies_it(empty: Path) -> None:
    """The copy differs only in the line for editors."""
    assert run(["init", "backlog_review"]) == Exit.OK
    _, _, rest = (empty / "specs/ceremonies/backlog_review.yaml").read_text("utf-8").partition("\n")
    assert rest == (CEREMONIES / "backlog_review.yaml").read_text("utf-8")


def test_init_writes_into_the_folder_that_the_environment_names(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine started here reads CEREMONIES_DIR. The schema then lies beside the definition."""
    monkeypatch.setenv("CEREMONIES_DIR", "ours")
    assert run(["init", "mine"]) == Exit.OK
    assert sorted(file.name for file in (empty / "ours").iterdir()) == ["ceremony-definition.schema.json", "mine.yaml"]
    assert "$schema=ceremony-definition.schema.json\n" in (empty / "ours/mine.yaml").read_text()


def test_init_overwrites_nothing(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second file of the same name is refused, and the first keeps its text."""
    file = empty / "specs/ceremonies/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert run(["init", "mine"]) == Exit.FAILED
    assert capsys.readouterr().err.startswith("file_exists: specs/ceremonies/mine.yaml ")
    assert file.read_text() == "mine"
    assert [entry.name for entry in (empty / "specs").iterdir()] == ["ceremonies"]


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("name", ["../out", "a-b", "a b", ""])
def test_a_name_that_no_start_could_use_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A definition's file is found by its name, so the same characters are allowed."""
    assert run(["init", name]) == Exit.USAGE
    assert capsys.readouterr().err.startswith("name_invalid: ")


def test_a_folder_that_cannot_be_made_is_one_line(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is in the place of the folder."""
    (empty / "specs").write_text("")
    assert run(["init"]) == Exit.FAILED
    assert capsys.readouterr().err.startswith("file_unwritable: ")


def test_schema_and_version_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither needs a worker or a log."""
    assert run(["schema"]) == Exit.OK
    assert capsys.readouterr().out == schema_text()
    assert run(["--version"]) == Exit.OK
    assert capsys.readouterr().out == f"ceremony {VERSION}\n"


def test_dev_looks_for_definitions_from_the_nearest_to_the_examples(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder named, else CEREMONIES_DIR, else specs/ceremonies, else the examples. One to start is among them."""
    assert folder_to_try(None) == examples_folder()
    assert to_start(folder_to_try(None)) == "backlog_review"
    assert run(["init", "mine"]) == Exit.OK
    assert folder_to_try(None) == Path("specs/ceremonies")
    assert to_start(folder_to_try(None)) == "mine"
    monkeypatch.setenv("CEREMONIES_DIR", str(empty / "theirs"))
    assert folder_to_try(None) == empty / "theirs"
    assert folder_to_try(Path("named")) == Path("named")


def test_the_examples_of_a_checkout_are_those_of_specs() -> None:
    """The package has a link to the folder, not a copy."""
    assert examples_folder().resolve() == CEREMONIES
