"""The folder of ceremony definitions: reads files by name, again after a change; keeps the problems of invalid ones."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from pathlib import Path
from typing import NamedTuple

import structlog

from ports.clock import Clock
from ports.errors import CeremonyError
from tables.definition import Definition
from tables.definitions.loader import load
from tables.errors import DefinitionInvalid, Problem
from tables.kinds import Kinds

log = structlog.get_logger(__name__)

NAME = re.compile(r"[A-Za-z0-9_]+")
LARGEST_FILE_BYTES = 256 * 1024
# A file that changed so shortly before it was read may change again under the same stamp: it is read once more.
SETTLED_SECONDS = 2.0
# Errors of a path that leads to no file.
_ABSENT = frozenset({ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG})
# A pipe that takes the place of a file does not block the opening, and a link does not lead elsewhere after the check.
_OPENING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
# A rule of this server beyond the rules of the language: (definition, file name) → problems.
ServerRule = Callable[[Definition, str], Sequence[Problem]]


class DefinitionUnknown(CeremonyError):
    """The folder has no file of this name."""


class NoDefinitionFile(CeremonyError):
    """The path is no file of the folder: a pipe, a device, a folder, or a link that leads out."""


class Stamp(NamedTuple):
    """Identity and times of a file. A swap of a link changes the inode, a change of the content one of the times."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class DefinitionFile:
    """One file at its last reading."""

    name: str
    definition: Definition | None
    problems: tuple[Problem, ...]
    stamp: Stamp | None = None
    """None: to be read again at once."""
    content: bytes = b""


class DefinitionFolder:
    """Definitions by name. `rules` are checks of this server beyond the language, such as the publish allowlist."""

    def __init__(
        self,
        folder: Path,
        kinds: Kinds,
        clock: Clock,
        rules: Sequence[ServerRule] = (),
        learn: Callable[[tuple[str, ...]], None] = lambda _: None,
    ) -> None:
        """`learn` is given the prompts of each definition that is read."""
        self.folder = folder
        self._learn = learn
        self._clock = clock
        self._kinds = kinds
        self._rules = rules
        self._read: dict[str, DefinitionFile] = {}
        self._failing: set[str] = set()
        """Names whose last reading failed."""

    def get(self, name: str) -> Definition:
        """The definition of this name, from the present file. Raises DefinitionUnknown or DefinitionInvalid."""
        loaded = self._current(name)
        if loaded is None:
            raise DefinitionUnknown("definition_unknown", self._unknown(name))
        if loaded.definition is None:
            raise DefinitionInvalid(loaded.problems)
        return loaded.definition

    def all(self) -> list[DefinitionFile]:
        """Every file, sorted by name; invalid ones with their problems."""
        found = [self._current(path.stem) if named_well(path) else _misnamed(path) for path in self._files()]
        return [loaded for loaded in found if loaded is not None]

    def report(self) -> None:
        """Log every problem of every invalid file, at the start of a server."""
        if not self.folder.is_dir():
            log.error(
                "definitions_missing", folder=str(self.folder), hint="set CEREMONIES_DIR to a folder of definitions"
            )
        for loaded in self.all():
            for problem in loaded.problems:
                log.error("definition_invalid", definition=loaded.name, problem=str(problem))

    def _files(self) -> Iterator[Path]:
        return iter(sorted(path for path in self.folder.glob("*") if path.suffix.lower() in (".yaml", ".yml")))

    def _unknown(self, name: str) -> str:
        known = ", ".join(path.stem for path in self._files() if path.suffix == ".yaml") or "none"
        other = next((path.name for path in self._files() if path.stem == name and path.suffix != ".yaml"), "")
        hint = f"; {other} must be called {name}.yaml" if other else ""
        return f"there is no definition {name[:200]!r}; known are: {known}{hint}"

    def _current(self, name: str) -> DefinitionFile | None:
        """Return the file as it is now. Where reading fails, the last reading stands, and the next call tries again."""
        if NAME.fullmatch(name) is None:
            return None
        before = self._read.get(name)
        try:
            loaded = self._fresh(name, before)
        except NoDefinitionFile as error:
            return _unreadable(name, error.message)
        except OSError as error:
            if error.errno not in _ABSENT:
                return self._failed(name, before, error)
            self._read.pop(name, None)
            return None
        self._failing.discard(name)
        self._read[name] = loaded
        return loaded

    def _fresh(self, name: str, before: DefinitionFile | None) -> DefinitionFile:
        """Return the last reading where the file has not changed since, else a new one. Raises OSError."""
        if before is not None and before.stamp == _stamp((self.folder / f"{name}.yaml").stat()):
            return before
        content, stamp = self._content(self._inside(name))
        if before is not None and before.content == content:
            return DefinitionFile(name, before.definition, before.problems, stamp, content)
        return self._load(name, content, stamp)

    def _content(self, path: Path) -> tuple[bytes, Stamp | None]:
        """Read a file, with its stamp if that tells a later change. Raises OSError."""
        content, stamp = _read(path)
        # The host's own clock set the stamp, so it is the one to compare with.
        settled = self._clock.wall() - stamp.changed_ns / 1e9 > SETTLED_SECONDS
        return content, stamp if settled else None

    def _inside(self, name: str) -> Path:
        """Resolve the links of a path, which may lead to any place inside the folder."""
        folder = self.folder.resolve(strict=True)
        try:
            path = (folder / f"{name}.yaml").resolve(strict=True)
        except RuntimeError as error:  # Python 3.11 raises it for a loop of links
            raise OSError(ELOOP, "a loop of links") from error
        if not path.is_relative_to(folder):
            raise NoDefinitionFile("file_outside", "it is a link that leads out of the folder of definitions")
        return path

    def _failed(self, name: str, before: DefinitionFile | None, error: OSError) -> DefinitionFile:
        if name not in self._failing:
            self._failing.add(name)
            log.warning("definition_unreadable", definition=name, error=error.strerror, served=before is not None)
        return before or _unreadable(name, f"the file cannot be read now: {error.strerror}")

    def _load(self, name: str, content: bytes, stamp: Stamp | None) -> DefinitionFile:
        file = f"{name}.yaml"
        try:
            definition = load(content, file, self._kinds)
        except DefinitionInvalid as error:
            return DefinitionFile(name, None, error.problems, stamp, content)
        self._learn(definition.prompts)
        problems = tuple(problem for rule in self._rules for problem in rule(definition, file))
        return DefinitionFile(name, None if problems else definition, problems, stamp, content)


def named_well(path: Path) -> bool:
    """Return whether a start can name the definition of this file."""
    return path.suffix == ".yaml" and NAME.fullmatch(path.stem) is not None


def _misnamed(path: Path) -> DefinitionFile:
    """The entry of a file whose name no start can use."""
    problem = Problem(path.name, 1, "file_name_invalid", "a definition's file is named A-Z a-z 0-9 _ and .yaml")
    return DefinitionFile(path.stem, None, (problem,))


def _unreadable(name: str, message: str) -> DefinitionFile:
    return DefinitionFile(name, None, (Problem(f"{name}.yaml", 1, "file_unreadable", message),))


def _read(path: Path) -> tuple[bytes, Stamp]:
    """Read at most one byte above the limit, with the stamp of these bytes. Raises OSError."""
    descriptor = os.open(path, _OPENING)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NoDefinitionFile("file_unreadable", "it is no regular file")
        parts = []
        left = LARGEST_FILE_BYTES + 1
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts), _stamp(found)
    finally:
        os.close(descriptor)


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
