"""The diagnosis of a ceremony in words for people: verdict, reasons, and commands that help.

Pure: it reads a row, its pinned definition and the log's present time.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from tables.definition import Definition, Step, Transition
from tables.fold.transitions import open_guards
from tables.guards import GuardView, RefusedCheck, holds, is_human, is_never_judged
from tables.instance import TERMINAL, CeremonyStatus, Instance, Phase, StepState, StepStatus, gate_message
from tables.timers import ASK, CLOCK_AHEAD_MS, GATE, RETRY, RUN_ON, TIMEOUT, iso

# A timer that is overdue by more than this shows that no worker fires timers.
OVERDUE_MS = 60_000


class CeremonyVerdict(StrEnum):
    """In order of gravity, the gravest first."""

    STUCK = "stuck"
    """It waits for nothing, which is a bug of the engine, or this release cannot read its pinned definition."""
    OVERDUE = "overdue"
    """A timer is long overdue: no worker fires timers."""
    FAILED = "failed"
    PAUSED = "paused"
    WAITING_FOR_HUMAN = "waiting_for_human"
    MOVING = "moving"
    ENDED = "ended"


UNREADABLE = "this release cannot read its pinned definition, so no event can move it"
URGENT = frozenset({CeremonyVerdict.STUCK, CeremonyVerdict.OVERDUE})


class Wait(NamedTuple):
    """One thing that a ceremony waits for."""

    kind: str
    """pause, attempt, gate, guard or timer."""
    subject: str
    message: str
    since: int = 0
    """Milliseconds; 0: unknown."""
    due: int = 0
    """Deadline in milliseconds; 0: there is none, or it stands still."""


class GuardState(NamedTuple):
    guard: str
    """Empty for the condition of a transition without guards."""
    holds: bool
    reason: str


class WayOut(NamedTuple):
    """A transition that leaves the present state."""

    trigger: str
    to_state: str
    guards: tuple[GuardState, ...]


class CeremonyDiagnosis(NamedTuple):
    """The diagnosis of one ceremony."""

    row: Instance
    verdict: CeremonyVerdict
    since: int
    """Time in milliseconds since which the verdict holds."""
    message: str
    todo: tuple[str, ...] = ()
    waits: tuple[Wait, ...] = ()
    ways_out: tuple[WayOut, ...] = ()


_AWAITED_IN = {
    Phase.ASKED: "asked",
    Phase.SUBMITTED: "submitted, results are awaited",
    Phase.UNREACHABLE: "unreachable, asked again later",
    Phase.BACKOFF: "failed, the next attempt begins later",
    Phase.GATE: "a decision is awaited",
}


def waiting_for(row: Instance, definition: Definition) -> list[str]:
    """List everything awaited, one line each: a pause, attempts in flight, open gates, timers, open guards.

    The list is empty for an ended ceremony. A live ceremony with an empty list is stuck.
    """
    if row.status in TERMINAL:
        return []
    reasons = ["paused"] if row.status is CeremonyStatus.PAUSED else []
    reasons += [
        f"step {step_id} (attempt {step.attempt}): {_AWAITED_IN[step.phase]}"
        for step_id, step in row.steps.items()
        if step.phase is not Phase.NONE
    ]
    reasons += [f"timer {timer_id}" for timer_id in row.timers if timer_id not in RUN_ON]
    reasons += [f"guard {name}" for name in open_guards(row, definition)]
    return reasons


def verdict_of(row: Instance, definition: Definition | None, now: int) -> CeremonyVerdict:
    """Return the verdict alone, which is cheap enough for all rows of a table.

    `now` is the log's clock, 0 where it is not known yet. Without a readable definition no command can move the row.
    """
    if row.status in TERMINAL:
        # A stub, left by retention, has nothing to retry.
        return (
            CeremonyVerdict.FAILED if row.status is CeremonyStatus.FAILED and not row.expired else CeremonyVerdict.ENDED
        )
    if definition is None or not waiting_for(row, definition):
        return CeremonyVerdict.STUCK
    if now and _overdue(row, now):
        return CeremonyVerdict.OVERDUE
    if row.status is CeremonyStatus.PAUSED:
        return CeremonyVerdict.PAUSED
    return (
        CeremonyVerdict.WAITING_FOR_HUMAN if row.status is CeremonyStatus.WAITING_FOR_HUMAN else CeremonyVerdict.MOVING
    )


def since_when(row: Instance, verdict: CeremonyVerdict, now: int) -> int:
    """Return the time in milliseconds since which the verdict holds."""
    if verdict is CeremonyVerdict.PAUSED:
        return row.paused_at
    if verdict in (CeremonyVerdict.FAILED, CeremonyVerdict.ENDED):
        return row.ended_at
    if verdict is CeremonyVerdict.OVERDUE:
        return min(due for _, due in _overdue(row, now))
    return row.updated_at


def diagnose(row: Instance, definition: Definition | None, now: int) -> CeremonyDiagnosis:
    """Return the full diagnosis of one ceremony."""
    verdict = verdict_of(row, definition, now)
    return CeremonyDiagnosis(
        row,
        verdict,
        since_when(row, verdict, now),
        UNREADABLE if verdict is CeremonyVerdict.STUCK and definition is None else _message(row, verdict, now),
        (*_todo(row, definition, verdict), *_row_ahead(row, now)),
        tuple(_waits(row, definition)) if row.status not in TERMINAL else (),
        tuple(_ways_out(row, definition)) if definition is not None and row.status not in TERMINAL else (),
    )


def _overdue(row: Instance, now: int) -> list[tuple[str, int]]:
    """List running timers that should have fired long ago, with their due times."""
    stopped = row.status is CeremonyStatus.PAUSED
    return [
        (timer_id, timer.due)
        for timer_id, timer in row.timers.items()
        if timer.due < now - OVERDUE_MS and not (stopped and timer_id not in RUN_ON)
    ]


_SIMPLE = {
    CeremonyVerdict.WAITING_FOR_HUMAN: "people are awaited",
    CeremonyVerdict.MOVING: "agents or timers are awaited",
}


def _message(row: Instance, verdict: CeremonyVerdict, now: int) -> str:
    if verdict is CeremonyVerdict.STUCK:
        return f"it is {row.status} in {row.state} and waits for nothing: no event can move it any more"
    if verdict is CeremonyVerdict.OVERDUE:
        names = ", ".join(f"{timer_id} (due {iso(due)})" for timer_id, due in _overdue(row, now))
        return f"timers have not fired: {names}"
    if verdict is CeremonyVerdict.PAUSED:
        return _paused(row)
    if row.error_code:
        return f"{row.error_code}: {row.error_message}"
    return _SIMPLE.get(verdict, f"it has ended {row.status} in {row.state}")


def _paused(row: Instance) -> str:
    by = row.paused_by
    if by is None:
        return "it is PAUSED"
    role = f" ({by.role})" if by.role else ""
    return f"paused by {by.actor}{role}" + (f": {by.reason}" if by.reason else "")


# -- commands that help


def _todo(row: Instance, definition: Definition | None, verdict: CeremonyVerdict) -> Iterator[str]:
    """Yield commands to copy, where some help."""
    name = row.instance_id
    if definition is None and not row.expired:
        yield "its pinned definition cannot be read by this release: look for pinned_definition_invalid in the log"
    if definition is not None:
        yield from _refused_guards(row, definition)
    match verdict:
        case CeremonyVerdict.STUCK if definition is None:
            yield "go back to the release before; then replay the dead letters with the code definition_unknown"
        case CeremonyVerdict.STUCK:
            yield f"report it, with what `ceremony history {name}` and `ceremony get {name} -o json` say: a bug"
            yield f"ceremony cancel {name}"
        case CeremonyVerdict.OVERDUE:
            yield "see that the log takes writes: /readyz, and timers_wait in the worker's log"
        case CeremonyVerdict.PAUSED:
            yield f"ceremony resume {name}"
        case CeremonyVerdict.FAILED:
            yield from _retries(row, definition)
        case CeremonyVerdict.ENDED if row.status is CeremonyStatus.TIMED_OUT and not row.expired:
            yield f"ceremony retry {name}"
        case CeremonyVerdict.WAITING_FOR_HUMAN if definition is not None:
            yield from _decisions(row, definition)
        case _:
            pass


def _refused_guards(row: Instance, definition: Definition) -> Iterator[str]:
    """Name the guards of ways out of this state that this release refuses to judge."""
    ways = definition.transitions_from.get(row.state, ())
    view = GuardView(row, definition)
    for name in dict.fromkeys(name for way in ways for name in way.guards):
        guard = definition.guards[name]
        if isinstance(guard.expression, RefusedCheck):
            code = guard.expression.code
            yield f"guard `{name}` never holds: this release refuses its check ({code}); start a new ceremony"
        elif is_never_judged(reason := holds(guard, view)[1]):
            yield f"guard `{name}` does not hold, whatever its values are: {reason}"


def _row_ahead(row: Instance, now: int) -> Iterator[str]:
    if now and row.updated_at - now > CLOCK_AHEAD_MS:
        by = (row.updated_at - now) // 1000
        yield f"its last change is stamped {by:,} s ahead of the log's clock: see the clocks of the brokers"


def _retries(row: Instance, definition: Definition | None) -> Iterator[str]:
    if definition is None:
        return
    for step in definition.steps_by_state.get(row.state, ()):
        if row.steps[step.id].status is StepStatus.FAILED:
            yield f"ceremony retry {row.instance_id} {step.id}" + _role_for(definition, step.id)


def _decisions(row: Instance, definition: Definition) -> Iterator[str]:
    for step in definition.steps_by_state.get(row.state, ()):
        state = row.steps[step.id]
        if state.phase is Phase.GATE:
            yield f"ceremony approve {row.instance_id} {step.id} --role {_gate_role(definition, step)}"
        elif state.status is StepStatus.PENDING and row.selected and step.id not in row.selected:
            yield f"ceremony run {row.instance_id} {step.id}" + _role_for(definition, step.id)
    for name in open_guards(row, definition):
        guard = definition.guards[name]
        if is_human(guard) and not row.guard_approvals.get(name):
            role = f" --role {guard.role}" if guard.role else ""
            yield f"ceremony approve {row.instance_id} {name}{role}"


def _gate_role(definition: Definition, step: Step) -> str:
    return _role(definition, step.id) or ("" if step.gate is None else step.gate.role)


def _role(definition: Definition, action: str) -> str:
    """The first role that names the action."""
    return next((role.id for role in definition.roles.values() if action in role.allowed_actions), "")


def _role_for(definition: Definition, action: str) -> str:
    role = _role(definition, action)
    return f" --role {role}" if role else ""


# -- the things awaited


def _waits(row: Instance, definition: Definition | None) -> Iterator[Wait]:
    if row.status is CeremonyStatus.PAUSED:
        yield Wait("pause", row.instance_id, _paused(row), row.paused_at)
    stopped = row.status is CeremonyStatus.PAUSED
    for step_id, state in row.steps.items():
        if state.phase is not Phase.NONE:
            step = None if definition is None else definition.steps.get(step_id)
            yield _attempt(row, step_id, step, state, stopped=stopped)
    if definition is not None:
        view = GuardView(row, definition)
        for name in open_guards(row, definition):
            met, reason = holds(definition.guards[name], view)
            if not met:
                yield Wait("guard", name, view.in_full(name, reason), row.updated_at)
    for timer_id, timer in row.timers.items():
        running = not stopped or timer_id in RUN_ON
        message = "fires then" if running else f"stands still; {timer.due / 1000:g} s remain"
        yield Wait("timer", timer_id, message, 0, timer.due if running else 0)


# The timer that bounds the wait of each phase.
_TIMER_OF = {
    Phase.ASKED: TIMEOUT,
    Phase.SUBMITTED: TIMEOUT,
    Phase.UNREACHABLE: ASK,
    Phase.BACKOFF: RETRY,
    Phase.GATE: GATE,
}


def _attempt(row: Instance, step_id: str, step: Step | None, state: StepState, *, stopped: bool) -> Wait:
    timer = row.timers.get(_TIMER_OF[state.phase] + step_id)
    due = 0 if timer is None or stopped else timer.due
    kind = "gate" if state.phase is Phase.GATE else "attempt"
    return Wait(kind, step_id, f"attempt {state.attempt}: {_awaited(step, state)}", state.started_at, due)


def _awaited(step: Step | None, state: StepState) -> str:
    match state.phase:
        case Phase.ASKED:
            handler = "agent" if step is None else f"agent of {step.handler}"
            return f"requested of the {handler}; its first word is awaited"
        case Phase.SUBMITTED:
            return f"the Ray executor has it as {state.deliberation_id or '(no id)'}; {_answered(step, state)}"
        case Phase.UNREACHABLE:
            reason = f" ({state.error_code}: {state.error_message})" if state.error_code else ""
            asked = "once" if state.asks == 1 else f"{state.asks} times"
            return f"its neighbour is out of reach{reason}, asked {asked}; it is asked again then, until its timeout"
        case Phase.BACKOFF:
            return f"failed ({state.error_code}: {state.error_message}); the next attempt begins then"
        case _:
            return _gate(step, state)


def _answered(step: Step | None, state: StepState) -> str:
    agents = () if step is None else step.agents
    if not agents:
        return "its result on NATS is awaited"
    missing = [agent for agent in agents if agent not in state.answers]
    shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")  # noqa: PLR2004 - a line has an end
    return f"{len(state.answers)} of {len(agents)} agents have answered on NATS; awaited: {shown}"


def _gate(step: Step | None, state: StepState) -> str:
    gate = None if step is None else step.gate
    if gate is None:
        return "the role ? decides: "
    approvals = len({approval.actor for approval in state.approvals})
    counted = f", {approvals} of {gate.quorum} approvals" if gate.quorum > 1 else ""
    return f"the role {gate.role} decides: {gate_message(state, gate.message)}{counted}"


def _ways_out(row: Instance, definition: Definition) -> Iterator[WayOut]:
    view = GuardView(row, definition)
    for transition in definition.transitions_from.get(row.state, ()):
        guards = [_guard_state(name, definition, view) for name in transition.guards]
        guards = guards or [GuardState("", *_unguarded(row, definition, transition))]
        yield WayOut(transition.trigger, transition.to_state, tuple(guards))


def _guard_state(name: str, definition: Definition, view: GuardView) -> GuardState:
    held, reason = holds(definition.guards[name], view)
    return GuardState(name, held, view.in_full(name, reason))


def _unguarded(row: Instance, definition: Definition, transition: Transition) -> tuple[bool, str]:
    """A transition without guards waits for the selected steps of its state, or belongs to a step's failure."""
    here = definition.steps_by_state.get(row.state, ())
    failing = [step.id for step in here if step.on_failure == transition.trigger]
    if failing:
        return False, f"taken when {' or '.join(failing)} fails for good"
    for step in here:
        status = row.steps[step.id].status
        if status is not StepStatus.COMPLETED and (not row.selected or step.id in row.selected):
            return False, f"step `{step.id}` is {status}"
    return True, "all selected steps of the state are COMPLETED"
