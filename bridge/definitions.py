"""The folder of ceremony definitions: reads files by name, again after a change; keeps the problems of invalid ones."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from ports.errors import CeremonyError
from tables.definition import Definition
from tables.definitions.loader import load
from tables.errors import DefinitionInvalid, Problem
from tables.kinds import Kinds

log = structlog.get_logger(__name__)

NAME = re.compile(r"[A-Za-z0-9_]+")
LARGEST_FILE_BYTES = 256 * 1024
# A rule of this server beyond the rules of the language: (definition, file name) → problems.
ServerRule = Callable[[Definition, str], Sequence[Problem]]


class DefinitionUnknown(CeremonyError):
    """The folder has no file of this name."""


@dataclass(frozen=True, slots=True)
class DefinitionFile:
    """One file at its last reading."""

    name: str
    definition: Definition | None
    problems: tuple[Problem, ...]
    stamp: tuple[int, int]
    """Modification time in nanoseconds, and size."""


class DefinitionFolder:
    """Definitions by name. `rules` are checks of this server beyond the language, such as the publish allowlist."""

    def __init__(self, folder: Path, kinds: Kinds, rules: Sequence[ServerRule] = ()) -> None:
        self.folder = folder
        self._kinds = kinds
        self._rules = rules
        self._read: dict[str, DefinitionFile] = {}

    def get(self, name: str) -> Definition:
        """The definition of this name, from the present file. Raises DefinitionUnknown or DefinitionInvalid."""
        loaded = self._current(name)
        if loaded is None:
            known = ", ".join(sorted(file.stem for file in self.folder.glob("*.yaml"))) or "none"
            raise DefinitionUnknown("definition_unknown", f"there is no definition {name[:200]!r}; known are: {known}")
        if loaded.definition is None:
            raise DefinitionInvalid(loaded.problems)
        return loaded.definition

    def all(self) -> list[DefinitionFile]:
        """Every file, sorted by name; invalid ones with their problems."""
        names = sorted(file.stem for file in self.folder.glob("*.yaml"))
        return [loaded for name in names if (loaded := self._current(name) or _misnamed(name)) is not None]

    def report(self) -> None:
        """Log every problem of every invalid file, at the start of a server."""
        if not self.folder.is_dir():
            log.error(
                "definitions_missing", folder=str(self.folder), hint="set CEREMONIES_DIR to a folder of definitions"
            )
        for loaded in self.all():
            for problem in loaded.problems:
                log.error("definition_invalid", definition=loaded.name, problem=str(problem))

    def _current(self, name: str) -> DefinitionFile | None:
        if NAME.fullmatch(name) is None:
            return None
        path = self.folder / f"{name}.yaml"
        try:
            found = path.stat()
        except OSError:
            self._read.pop(name, None)
            return None
        stamp = (found.st_mtime_ns, found.st_size)
        loaded = self._read.get(name)
        if loaded is None or loaded.stamp != stamp:
            loaded = self._read[name] = self._load(name, path, stamp)
        return loaded

    def _load(self, name: str, path: Path, stamp: tuple[int, int]) -> DefinitionFile:
        try:
            text = _read(path)
            definition = load(text, path.name, self._kinds)
        except DefinitionInvalid as error:
            return DefinitionFile(name, None, error.problems, stamp)
        except OSError:
            problem = Problem(
                path.name, 1, "file_unreadable", "the file cannot be read: is it a file, and may we read it?"
            )
            return DefinitionFile(name, None, (problem,), stamp)
        problems = tuple(problem for rule in self._rules for problem in rule(definition, path.name))
        return DefinitionFile(name, None if problems else definition, problems, stamp)


def _misnamed(name: str) -> DefinitionFile | None:
    """The entry of a file whose name no start can use; None when the file has just been removed."""
    if NAME.fullmatch(name) is not None:
        return None
    problem = Problem(f"{name}.yaml", 1, "file_name_invalid", "a definition's file is named A-Z a-z 0-9 _ and .yaml")
    return DefinitionFile(name, None, (problem,), (0, 0))


def _read(path: Path) -> bytes:
    """Read at most one byte above the limit. Raises OSError, also for a pipe, whose reading would block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")
    with path.open("rb") as file:
        return file.read(LARGEST_FILE_BYTES + 1)
