"""The context of one fold: the command's origin, the definition, the next row and the effects so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tables.commands import Command, Origin
from tables.definition import Definition, Step, Transition
from tables.effects import FOLD, Effect, Event, Refused
from tables.fold.next_row import NextRow
from tables.guards import GuardView
from tables.instance import Instance
from tables.kinds import Kinds, Publication, StepContext, StepKind
from tables.limits import MAX_AT_ONCE, TRANSITIONS_AT_ONCE, clip
from tables.work import Work

# The end of every effect id.
_OF_FOLD = f"@{FOLD}"


class Evaluation(msgspec.Struct, frozen=True, gc=False):
    """One judgement of a transition. It holds references only; texts are made where it is read."""

    transition: Transition
    ordinal: int
    """Number of effects that the command had before."""
    holds: bool
    results: Sequence[tuple[str, bool | None, str]] = ()
    """The guards that were judged, in order: name, result (None where the expression failed or is refused), reason.
    Those after one that does not hold were not judged."""
    undone: Step | None = None
    """The step that a transition without guards waits for."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The result of folding one command.

    `row` is the same object as before when nothing changed. None deletes the row that was there.
    """

    row: Instance | None
    effects: tuple[Effect, ...]
    note: str = ""
    """The reason why nothing changed, as a stable word for a metric (`stale_attempt`, `duplicate`, …, or the code of a
    refusal); else empty."""
    unjudged: Mapping[str, str] = {}
    """Guards whose expression failed or is not boolean, with the reason. They do not hold, and are logged."""
    evaluations: Sequence[Evaluation] = ()
    """The transitions that the command judged, in order."""


class FoldContext:
    """The argument of every handler. A handler changes the row, or refuses, or notes why nothing changes."""

    __slots__ = (
        "_stem",
        "applied",
        "at_once",
        "before",
        "begun",
        "decided",
        "definition",
        "effects",
        "evaluations",
        "here",
        "judge_due",
        "kinds",
        "note",
        "now",
        "origin",
        "pinned",
        "row",
        "started",
        "unjudged",
        "work",
    )

    row: NextRow
    """The next version of the row; set once `begun`."""
    definition: Definition
    """The pinned definition; set where `pinned` is not None."""
    here: tuple[Step, ...]
    """Steps of the present state, in file order."""

    def __init__(self, before: Instance | None, pinned: Definition | None, kinds: Kinds, origin: Origin) -> None:
        self.before = before
        """The row before the command, or None."""
        self.pinned = pinned
        """The pinned definition, or None where this partition does not have it."""
        self.kinds = kinds
        self.origin = origin
        self.effects: list[Effect] = []
        self.applied = 0
        """Transitions applied by this command."""
        self.at_once: tuple[str, ...] = ()
        """Steps that this command finished without their agents."""
        self.started: Step | None = None
        """The step that was started last."""
        self.judge_due = False
        """True after a conclusion of a step, an entry, a decision or a resume: automatic transitions are judged."""
        self.note = ""
        self.unjudged: dict[str, str] = {}
        self.evaluations: list[Evaluation] = []
        self.work = Work()
        self.decided: Decision | None = None
        """The decision of a handler that does not make it from the next row."""
        self.begun = False
        if pinned is not None:
            self.definition = pinned
            if before is not None:
                self.begin(NextRow(before, origin.timestamp))
                return
        self.now = origin.timestamp if before is None else max(before.updated_at, origin.timestamp)

    def begin(self, row: NextRow) -> None:
        """Set the row that the handlers change."""
        self.row = row
        self.begun = True
        self.now = row.now
        self.here = self.definition.steps_by_state.get(row.state, ())
        self._stem = f"{row.base.instance_id}/{row.version}/"

    def effect_id(self) -> str:
        """Return the id of the next effect of a command that changes the row."""
        return f"{self._stem}{len(self.effects)}{_OF_FOLD}"

    def event(self, subject: str, payload: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
        base = self.row.base
        self.effects.append(
            Event(
                id=f"{self._stem}{len(self.effects)}{_OF_FOLD}",
                subject=subject,
                instance_id=base.instance_id,
                correlation_id=base.correlation_id,
                at=self.now,
                payload=payload,
                metadata=metadata,
            )
        )

    def lifecycle(self, word: str, payload: dict[str, Any]) -> None:
        """Emit the event `ceremony.<word>` about the ceremony as a whole."""
        base = self.row.base
        whole = {
            "instance_id": base.instance_id,
            "definition_name": base.definition_name,
            "current_state": self.row.state,
            "status": str(self.row.status),
        }
        self.event(f"ceremony.{word}", whole | payload)

    def refuse(self, command: Command, code: str, message: str) -> None:
        """Refuse the command, which cannot be applied now."""
        self.note = code
        instance_id = command.instance_id if self.before is None else self.before.instance_id
        self.effects.append(refused(instance_id, command, self.origin, code, message))

    def kind(self, step: Step) -> StepKind:
        return self.kinds[step.handler]

    def publication(self, step: Step, visit: int) -> Publication | None:
        """Return the message that the step sends in this visit, or None."""
        if not step.publishes:
            return None
        return self.kinds[step.handler].publication(step, self.row.base.instance_id, visit)

    def may_finish_at_once(self, step: Step) -> bool:
        """Return whether this command may finish the step without its agent."""
        few = len(self.at_once) < MAX_AT_ONCE and self.applied < TRANSITIONS_AT_ONCE
        return few and step.id not in self.at_once

    def context(self, step: Step) -> StepContext:
        return StepContext(self.row, self.definition, step, self.now, self.work)

    def view(self) -> GuardView:
        return GuardView(self.row.peek(), self.definition, self.work)

    def selects(self, step_id: str) -> bool:
        """Return whether the step runs by itself."""
        selected = self.row.base.selected
        return not selected or step_id in selected

    def enter(self, state_id: str) -> None:
        self.row.enter(state_id)
        self.judge_due = True
        self.here = self.definition.steps_by_state.get(state_id, ())


def refused(instance_id: str, command: Command, origin: Origin, code: str, message: str) -> Refused:
    """Return the answer to a command that changed nothing; its id comes from the log."""
    return Refused(
        id=f"{origin.partition}/{origin.offset}/0",
        instance_id=instance_id,
        command_id=command.command_id,
        code=code,
        message=clip(message),
    )
