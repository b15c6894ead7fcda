"""Guards: parses their checks at load, and judges them on an instance with a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from cel_expr_python import cel as cel_library

from ports.errors import CeremonyError
from tables.cel import engine as cel
from tables.definition import Definition, Guard, GuardType
from tables.instance import Approval, Instance, StepStatus
from tables.paths import MISSING, dig
from tables.timers import iso

FORMS = "all_steps_completed, step_status:<step>:<STATUS>, threshold:<step>.<path> or cel:<expression>"
_STEP = re.compile(r"[a-z0-9_]+")
# Reads of steps in a CEL expression. Texts and comments are matched first, so that the words in them read nothing.
_READS = re.compile(
    r"""
    //[^\n]*
    | \b[bB]?[rR][bB]?(?: \"{3}.*?\"{3} | '{3}.*?'{3} | "[^"\n]*" | '[^'\n]*' )
    | \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3} | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'
    | (?<![\w.])(?P<read>outputs|status)\b
      (?: \s*\.\s*(?P<field>[A-Za-z_]\w*) | \s*\[\s*(?P<quote>["'])(?P<key>[^"'\\]*)(?P=quote)\s*\] )?
    """,
    re.VERBOSE | re.DOTALL,
)
# Code of a check that an older release accepted and this one refuses.
REFUSED = "check_refused"
_PENDING: str = StepStatus.PENDING


class GuardView:
    """The view of an instance that a guard is judged on. Its costly parts are built on first use."""

    __slots__ = ("_cel", "definition", "instance")

    def __init__(self, instance: Instance, definition: Definition) -> None:
        self.instance = instance
        self.definition = definition
        self._cel: dict[str, Any] | None = None

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

    def cel(self) -> dict[str, Any]:
        """Return the variables of a CEL expression (specification 3.5)."""
        if self._cel is None:
            self._cel = self._variables()
        return self._cel

    def _variables(self) -> dict[str, Any]:
        instance = self.instance
        outputs = {step: self.output(step) for step in self.definition.steps}
        return {
            "inputs": instance.inputs,
            "outputs": {step: value for step, value in outputs.items() if value is not MISSING},
            "status": {step: str(self.status(step)) for step in self.definition.steps},
            "state": instance.state,
            "ceremony": {
                "instance_id": instance.instance_id,
                "ceremony_id": instance.ceremony_id,
                "story_id": instance.story_id,
                "version": instance.version,
                "started_at": iso(instance.created_at),
            },
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
        for step in view.selected:
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
            return False, f"step `{self.step}` is {view.status(self.step)}, it has no output"
        value = dig(output, self.path)
        if value is MISSING:
            return False, f"{where} is not in the step's output"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False, f"{where} is no number"
        threshold = guard.threshold
        if threshold is None:
            return False, "the guard has no `threshold`"
        return value >= threshold, f"{where} is {_shown(value)}, the threshold is {threshold:.15g}"

    def steps(self, known: tuple[str, ...]) -> frozenset[str]:
        return frozenset((self.step,))


@dataclass(frozen=True, slots=True)
class Cel:
    source: str
    program: cel_library.Expression

    def holds(self, guard: Guard, view: GuardView) -> tuple[bool, str]:
        if cel.builds_lists(self.source) and cel.longer_than(view.cel(), cel.MAX_LIST):
            return False, f"with `map` or `filter`, no list or map it could see may have over {cel.MAX_LIST} entries"
        return cel.evaluate(self.program, view.cel())

    def steps(self, known: tuple[str, ...]) -> frozenset[str]:
        """Find `status.x` and `outputs["x"]` in the text; any other access may read every known step."""
        named = set()
        for match in _READS.finditer(self.source):
            if match["read"] is None:
                continue
            name = match["field"] or match["key"]
            if name not in known:
                return frozenset(known)
            named.add(name)
        return frozenset(named)


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
        return Cel(rest, cel.compiled(rest))
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
    return False, f"waits for an approval by {who}"


def is_unjudged(guard: Guard, reason: str) -> bool:
    """Return whether the `reason` of `holds` says that the expression failed or is not boolean."""
    if isinstance(guard.expression, RefusedCheck):
        return True
    return isinstance(guard.expression, Cel) and reason not in (cel.TRUE, cel.FALSE)


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
