"""Checks definition files, and lists every reason and every warning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.publish import subject_problems
from steps.subjects import DEFAULT_ALLOWLIST
from tables.definition import Definition
from tables.definitions.advice import warnings
from tables.definitions.loader import load
from tables.errors import DefinitionInvalid, Problem
from tables.kinds import Kinds

# Bytes; one more is read, so that the loader notices a larger file.
LARGEST_FILE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Checked:
    """One file: its definition, or the problems that it has."""

    path: str
    definition: Definition | None
    problems: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()

    def data(self) -> dict[str, Any]:
        return {
            "file": self.path,
            "valid": self.definition is not None,
            "name": self.definition.name if self.definition else "",
            "hash": self.definition.hash if self.definition else "",
            "problems": [problem_data(problem) for problem in self.problems],
            "warnings": [problem_data(problem) for problem in self.warnings],
        }


def problem_data(problem: Problem) -> dict[str, Any]:
    return {"file": problem.file, "line": problem.line, "rule": problem.rule, "message": problem.message}


def check(paths: Sequence[Path], kinds: Kinds, allowlist: Sequence[str] | None = None) -> list[Checked]:
    """Check these files, and the `*.yaml` and `*.yml` of these folders, sorted by name.

    `allowlist` holds the patterns of PUBLISH_SUBJECTS: another subject is an error. Where it is not known, a subject
    outside the default is a warning.
    """
    found = [file for path in paths for file in files(path)]
    return [check_file(file, kinds, allowlist) if file.is_file() else missing(file) for file in found]


def files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in (".yaml", ".yml"))
        yield from found or [path / "*.yaml"]
    else:
        yield path


def missing(path: Path) -> Checked:
    return Checked(str(path), None, [Problem(str(path), 1, "file_missing", "there is no such file")])


def check_file(path: Path, kinds: Kinds, allowlist: Sequence[str] | None = None) -> Checked:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE_BYTES + 1)
        definition = load(text, str(path), kinds)
    except OSError as error:
        unreadable = Problem(str(path), 1, "file_unreadable", f"the file cannot be read: {error.strerror}")
        return Checked(str(path), None, [unreadable])
    except DefinitionInvalid as error:
        return Checked(str(path), None, [*_misnamed(path), *error.problems])
    # The warnings name the definition; a reader has the file open.
    advice = [Problem(str(path), w.line, w.rule, w.message) for w in warnings(definition, kinds)]
    refused = subject_problems(definition, DEFAULT_ALLOWLIST if allowlist is None else allowlist, str(path))
    if allowlist is None:
        advice, refused = sorted([*advice, *refused]), []
    problems = [*_misnamed(path), *refused]
    return Checked(str(path), None if problems else definition, problems, advice)


def _misnamed(path: Path) -> list[Problem]:
    """List the fault of a file whose name the engine does not look for."""
    if path.suffix == ".yaml":
        return []
    message = f"the engine reads only files called .yaml; call it {path.with_suffix('.yaml').name}"
    return [Problem(str(path), 1, "file_name_invalid", message)]
