"""Guards: parses their checks at load, and judges them on an instance with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ports.errors import CeremonyError
from tables.cel import engine as cel
from tables.cel.reads import ReadPaths, picked
from tables.definition import Definition, Guard, GuardType
from tables.instance import Approval, Instance, StepStatus
from tables.paths import MISSING, dig
from tables.timers import iso
from tables.work import Work, WorkSpent

FORMS = "all_steps_completed, step_status:<step>:<STATUS>, threshold:<step>.<path> or cel:<expression>"
_STEP = re.compile(r"[a-z0-9_]+")
# Code of a check that an older release accepted and this one refuses.
REFUSED = "check_refused"
# Steps of work (tables/work.py) of looking at the status of one step.
_STATUS_STEPS = 20
_PENDING: str = StepStatus.PENDING


class GuardView:
    """The view of an instance that a guard is judged on. Its costly parts are built on first use."""

    __slots__ = ("definition", "details", "instance", "work")

    def __init__(self, instance: Instance, definition: Definition, work: Work | None = None) -> None:
        self.instance = instance
        self.definition = definition
        self.work = Work() if work is None else work
        """The steps left for expressions."""
        self.details: dict[str, str] = {}
        """By guard: the engine's own words on a failed expression."""

    @classmethod
    def of(cls, instance: Instance, definition: Definition) -> GuardView:
        return cls(instance, definition)

    @property
    def state(self) -> str:
        return self.instance.state

    @property
    def selected(self) -> tuple[str, ...]:
        """Ids of the steps that run by themselves."""
        return self.instance.selected or tuple(self.definition.steps)

    def status(self, step_id: str) -> str:
        state = self.instance.steps.get(step_id)
        return _PENDING if state is None else state.status

    def output(self, step_id: str) -> Any:
        """Return the output of a COMPLETED step, else MISSING."""
        state = self.instance.steps.get(step_id)
        return MISSING if state is None or state.status is not StepStatus.COMPLETED else state.output

    def approvals(self, guard: str) -> tuple[Approval, ...]:
        return self.instance.guard_approvals.get(guard, ())

    def cel(self, reads: ReadPaths) -> dict[str, Any]:
        """Return the parts of the variables that an expression reads (specification 3.5)."""
        return {name: picked(_VARIABLES[name](self, parts), parts) for name, parts in reads.items()}

    def in_full(self, guard: str, reason: str) -> str:
        """Return a reason with the engine's own words, for logs and people; rows and effects have the reason alone."""
        detail = self.details.get(guard)
        return f"{reason} ({detail})" if detail else reason


def _outputs(view: GuardView, parts: ReadPaths | None) -> dict[str, Any]:
    found = {step: view.output(step) for step in (view.definition.steps if parts is None else parts)}
    return {step: value for step, value in found.items() if value is not MISSING}


def _statuses(view: GuardView, parts: ReadPaths | None) -> dict[str, str]:
    steps = view.definition.steps
    return {step: str(view.status(step)) for step in (steps if parts is None else parts) if step in steps}


def _ceremony(view: GuardView, _parts: ReadPaths | None) -> dict[str, Any]:
    instance = view.instance
    return {
        "instance_id": instance.instance_id,
        "ceremony_id": instance.ceremony_id,
        "story_id": instance.story_id,
        "version": instance.version,
        "started_at": iso(instance.created_at),
    }


_VARIABLES: Mapping[str, Callable[[GuardView, ReadPaths | None], Any]] = {
    "inputs": lambda view, _parts: view.instance.inputs,
    "outputs": _outputs,
    "status": _statuses,
    "state": lambda view, _parts: view.instance.state,
    "ceremony": _ceremony,
}


class GuardCheck(Protocol):
    """A parsed check."""

    def holds(self, guard: Guard, view: GuardView) -> tuple[bool, str]:
        """Return whether the check holds, and the reason in words."""

    def steps(self, known: tuple[str, ...]) -> frozenset[str]:
        """Return the ids of the steps that the check names; all `known` ones where it may read any."""


@dataclass(frozen=True, slots=True)
class AllStepsCompleted:
    def holds(self, guard: Guard, view: GuardView) -> tuple[bool, str]:
        selected = view.selected
        try:
            view.work.spend(_STATUS_STEPS * len(selected))
        except WorkSpent as error:
            return False, f"{error.code}: {error.message}"
        for step in selected:
            status = view.status(step)
            if status != StepStatus.COMPLETED:
                return False, f"step `{step}` is {status}"
        return True, "all selected steps are COMPLETED"

    def steps(self, known: tuple[str, ...]) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True, slots=True)
class StepStatusIs:
    step: str
    status: StepStatus

    def holds(self, guard: Guard, view: GuardView) -> tuple[bool, str]:
        status = view.status(self.step)
        return status == self.status, f"step `{self.step}` is {status}"

    def steps(self, known: tuple[str, ...]) -> frozenset[str]:
        return frozenset((self.step,))


@dataclass(frozen=True, slots=True)
class Threshold:
    step: str
    path: str

    def holds(self, guard: Guard, view: GuardView) -> tuple[bool, str]:
        where = f"`{self.step}.{self.path}`"
        output = view.output(self.step)
        if output is MISSING:
            return False, f"step `{self.step}` is {view.status(self.step)}, so it has no output"
        value = dig(output, self.path)
        if value is MISSING:
            return False, f"{where} is not in the step's output"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False, f"{where} is not a number"
        threshold = guard.threshold
        if threshold is None:
            return False, "the guard has no `threshold`"
        return value >= threshold, f"{where} is {_shown(value)}; the threshold is {threshold:.15g}"

    def steps(self, known: tuple[str, ...]) -> frozenset[str]:
        return frozenset((self.step,))


@dataclass(frozen=True, slots=True)
class Cel:
    expression: cel.Expression

    @property
    def broken(self) -> tuple[tuple[str, str], ...]:
        """Rules (code, message) by which the expression is never judged."""
        return self.expression.broken

    def holds(self, guard: Guard, view: GuardView) -> tuple[bool, str]:
        reason, detail, held = cel.evaluate(self.expression, view.cel(self.expression.reads), view.work)
        if detail:
            view.details[guard.name] = detail
        return held, reason

    def steps(self, known: tuple[str, ...]) -> frozenset[str]:
        named: set[str] = set()
        for variable in ("outputs", "status"):
            parts = self.expression.reads.get(variable, {})
            named |= set(known if parts is None else parts)
        return frozenset(named & set(known))


@dataclass(frozen=True, slots=True)
class RefusedCheck:
    """The check of a pinned definition that this release refuses. It never holds, whatever its steps do."""

    code: str
    """The rule that refuses it."""

    def holds(self, guard: Guard, view: GuardView) -> tuple[bool, str]:
        return False, f"{REFUSED}: this release refuses the check ({self.code}); the ceremony is pinned to it"

    def steps(self, known: tuple[str, ...]) -> frozenset[str]:
        return frozenset()


def _shown(value: float) -> str:
    """Return a number in words; an integer may be too large for a float."""
    try:
        return f"{value:.15g}"
    except OverflowError:
        return "very large"


def parse_check(text: str) -> GuardCheck:
    """Parse the check of an automated guard. Raises CeremonyError `bad_check` or `bad_expression`."""
    if text == "all_steps_completed":
        return AllStepsCompleted()
    form, colon, rest = text.partition(":")
    if colon and form == "step_status":
        return _step_status(rest)
    if colon and form == "threshold":
        step, dot, path = rest.partition(".")
        if not _STEP.fullmatch(step) or not dot or not all(path.split(".")):
            raise CeremonyError("bad_check", "must read threshold:<step>.<path>, as in threshold:score_story.score")
        return Threshold(step, path)
    if colon and form == "cel":
        return Cel(cel.compiled(rest))
    raise CeremonyError("bad_check", f"must be {FORMS}")


def _step_status(rest: str) -> StepStatusIs:
    step, colon, status = rest.partition(":")
    if not _STEP.fullmatch(step) or not colon:
        raise CeremonyError("bad_check", "must read step_status:<step>:<STATUS>")
    if status not in StepStatus.__members__:
        raise CeremonyError("bad_check", f"the status must be one of {', '.join(StepStatus)}")
    return StepStatusIs(step, StepStatus(status))


def holds(guard: Guard, view: GuardView) -> tuple[bool, str]:
    """Judge a guard: (whether it holds, the reason in words). Never raises."""
    if guard.type is GuardType.HUMAN:
        return _approved(guard, view)
    expression: GuardCheck = guard.expression
    return expression.holds(guard, view)


def _approved(guard: Guard, view: GuardView) -> tuple[bool, str]:
    for approval in view.approvals(guard.name):
        if guard.role is None or approval.role == guard.role:
            return True, f"approved by {approval.actor}"
    who = "somebody" if guard.role is None else f"the role {guard.role}"
    return False, f"it waits for an approval by {who}"


def is_unjudged(guard: Guard, reason: str) -> bool:
    """Return whether the `reason` of `holds` says that the expression failed or is not boolean."""
    if isinstance(guard.expression, RefusedCheck):
        return True
    return isinstance(guard.expression, Cel) and reason not in (cel.TRUE.reason, cel.FALSE.reason)


def is_never_judged(reason: str) -> bool:
    """Return whether the `reason` of `holds` says that a rule forbids to judge the expression on these values."""
    return reason.partition(":")[0] in cel.FORBIDDEN


def is_human(guard: Guard) -> bool:
    return guard.type is GuardType.HUMAN


def guard_steps(guard: Guard, definition: Definition) -> frozenset[str]:
    """Return the steps whose run can change the guard, as its check names them.

    There are none for a human guard. There are none for all_steps_completed either: it reads the selected steps only,
    so running an unselected one changes nothing.
    """
    if guard.expression is None:
        return frozenset()
    expression: GuardCheck = guard.expression
    return expression.steps(tuple(definition.steps))
