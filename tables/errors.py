"""Errors about definitions, rows and records. The root of the tree is in `ports/errors.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ports.errors import CeremonyError


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One violation in a definition file: its place, the rule it breaks, and the remedy."""

    file: str
    line: int
    """1-based; 1 where the file as a whole is at fault."""
    rule: str
    """Stable code of the rule, lower snake case."""
    message: str
    """The mistake and its remedy."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.message}"


class DefinitionInvalid(CeremonyError):
    """A definition file breaks rules; `problems` lists every one, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("definition_invalid", "\n".join(map(str, problems)))
        self.problems = tuple(problems)


class InvariantBroken(CeremonyError):
    """A new row breaks invariants, all listed in `reasons`: a bug of the engine, or a forged row."""

    def __init__(self, instance_id: str, reasons: Sequence[str]) -> None:
        super().__init__("invariant_broken", "; ".join(reasons), place=instance_id)
        self.reasons = tuple(reasons)


class Undecodable(CeremonyError):
    """Bytes that are no record of the engine: malformed JSON, an unknown type, a missing field."""


class FormatTooNew(CeremonyError):
    """A newer release wrote this row or record. The worker must end, for nothing may be skipped."""

    def __init__(self, noun: str, found: int, ours: int) -> None:
        message = f"{noun} has format {found}, this release reads up to {ours}"
        super().__init__("format_too_new", message, remedy="upgrade this worker")
