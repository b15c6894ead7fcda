"""One command as it was folded, for all that looks at a batch afterwards: metrics first of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ports.log import Record
from tables.commands import AnyCommand
from tables.definition import Definition
from tables.effects import Effect
from tables.fold.context import Evaluation
from tables.instance import Instance


class Folded(NamedTuple):
    """The row before and after one command, its effects, and the judgements that led to them."""

    before: Instance | None
    after: Instance | None
    definition: Definition | None
    """The definition that the ceremony is pinned to; None where it cannot be read."""
    effects: Sequence[Effect]
    evaluations: Sequence[Evaluation] = ()
    """The transitions that were judged."""
    unjudged: Mapping[str, str] = {}
    """Guards that could not be judged, with the reason."""
    command: AnyCommand | None = None
    record: Record | None = None
    """The command's record."""
