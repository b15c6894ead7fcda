"""Errors about definitions, rows and records. The root of the tree is in `ports/errors.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ports.errors import CeremonyError


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One violation in a definition file: where it is, which rule it breaks and what would be right."""

    file: str
    line: int
    """1-based; 1 where the file as a whole is meant."""
    rule: str
    """Stable code of the rule, lower snake case."""
    message: str
    """What is wrong, and what would be right."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.message}"


class DefinitionInvalid(CeremonyError):
    """A definition file breaks rules; `problems` lists every one, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("definition_invalid", "\n".join(map(str, problems)))
        self.problems = tuple(problems)


class InvariantBroken(CeremonyError):
    """The builder refused an instance; `reasons` lists every broken invariant. It means a bug, or a forged row."""

    def __init__(self, instance_id: str, reasons: Sequence[str]) -> None:
        super().__init__("invariant_broken", "; ".join(reasons), place=instance_id)
        self.reasons = tuple(reasons)


class Undecodable(CeremonyError):
    """Bytes that are no record of ours: malformed JSON, an unknown type, a missing field."""


class FormatTooNew(CeremonyError):
    """A row or record was written by a newer release than this one; the worker must end, nothing may be skipped."""

    def __init__(self, what: str, found: int, ours: int) -> None:
        message = f"{what} has format {found}, this release reads up to {ours}"
        super().__init__("format_too_new", message, remedy="upgrade this worker")
