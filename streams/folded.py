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

    def began(self, step_id: str, attempt: int) -> int:
        """Return when an attempt that this command ended had begun, in milliseconds; 0 where neither row knows.

        An attempt's number is never used twice. The row after knows it, unless its state was entered anew.
        """
        for row in (self.after, self.before):
            state = None if row is None else row.steps.get(step_id)
            if state is not None and state.attempt == attempt and state.started_at:
                return state.started_at
        return 0
