"""The pages of docs/reference/ are as the code makes them, and name everything that they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from ceremony.cli.verbs import VERBS
from ceremony.settings import Settings
from scripts.reference_pages import __main__ as reference
from steps.registry import all_kinds
from tables.definitions.file_format import definition_schema
from tables.definitions.problems import UNREADABLE
from tables.fold.refusals import CLASS_OF

ROOT = Path(__file__).parents[2]


def written(name: str) -> str:
    return (ROOT / "docs/reference" / name).read_text("utf-8")


def test_every_page_is_as_the_code_makes_it() -> None:
    # In a process of its own, as `scripts/check` does: the help of a verb depends on what else its process has done.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    check = [sys.executable, "-m", "scripts.reference_pages", "--check"]
    done = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_page_that_differs_is_named_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(reference, "PAGES", {"one.md": lambda: "new\n", "two.md": lambda: "same\n"})
    (tmp_path / "one.md").write_text("old\n")
    (tmp_path / "two.md").write_text("same\n")
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert (tmp_path / "one.md").read_text() == "new\n"
    assert reference.main(["--check"]) == 0


def test_the_pages_name_every_verb_setting_call_subject_and_refusal() -> None:
    calls = pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"].methods_by_name
    channels = yaml.safe_load((ROOT / "specs/asyncapi.yaml").read_text("utf-8"))["channels"].values()
    wanted = {
        "cli.md": [f"### {verb.name}\n" for verb in VERBS],
        "settings.md": [f"| `{field.alias}` |" for field in Settings.model_fields.values()],
        "grpc.md": [f"### {call}\n" for call in calls],
        "events.md": [f"## `{channel['address']}`" for channel in channels],
        "errors.md": [f"| `{code}` | {kind} |" for code, kind in CLASS_OF.items()],
    }
    missing = {page: [text for text in texts if text not in written(page)] for page, texts in wanted.items()}
    assert not any(missing.values()), missing


def test_the_page_of_definitions_names_every_key_of_the_schema() -> None:
    page = written("definition.md")
    schema = definition_schema(all_kinds())
    keys = set(schema["properties"])
    keys |= {key for model in schema["$defs"].values() for key in model["properties"]}
    assert {key for key in keys if f"| `{key}` |" not in page} == set()
    assert set(re.findall(r"^### `(\w+)`$", page, re.MULTILINE)) == set(all_kinds())


def test_every_key_of_a_definition_has_a_meaning() -> None:
    rows = [line for line in written("definition.md").splitlines() if line.startswith("| `")]
    assert rows
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_errors_that_a_broken_definition_gives_are_on_the_page() -> None:
    """The loader's own list of old codes, of which none may go."""
    page = written("errors.md")
    assert {code for code in UNREADABLE if f"| `{code}` |" not in page} == set()
