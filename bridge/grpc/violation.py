"""One field of a request, or one line of a definition, that breaks a rule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tables.errors import Problem

# Violations that a refusal keeps; fewer fit into its details.
MOST_NAMED = 100


class Violation(NamedTuple):
    """An entry of `google.rpc.BadRequest`."""

    field: str
    """Path in the request, such as `inputs.title`, or `file:line` of a definition."""
    code: str
    description: str
    """The mistake and its remedy."""


def violations_of(problems: Iterable[Problem]) -> tuple[Violation, ...]:
    """The problems of a definition file as violations."""
    return tuple(Violation(f"{one.file}:{one.line}", one.rule, one.message) for one in problems)
