"""Invariants of every row, and of the step from one row to the next; each check lists its violations."""

from __future__ import annotations

from typing import Self

from tables.definition import Definition
from tables.instance import (
    KEPT_COMMAND_IDS,
    REJECTED,
    TERMINAL,
    CeremonyStatus,
    Instance,
    Phase,
    StepState,
    StepStatus,
)
from tables.limits import MAX_WRITTEN_BYTES
from tables.timers import ASK, CEREMONY_MAX, EXPIRE, GATE, OF_PHASE, RUN_ON

_IN_PROGRESS, _WAITING, _FAILED = StepStatus.IN_PROGRESS, StepStatus.WAITING_FOR_HUMAN, StepStatus.FAILED
# Endings that nothing opens again.
_FINAL = frozenset({CeremonyStatus.COMPLETED, CeremonyStatus.CANCELLED})
# Timers a phase may hold but need not: a gate without a deadline has none.
_OPTIONAL = (GATE, ASK)
_PHASES = {
    StepStatus.PENDING: frozenset({Phase.NONE}),
    StepStatus.IN_PROGRESS: frozenset({Phase.ASKED, Phase.SUBMITTED, Phase.UNREACHABLE, Phase.BACKOFF}),
    StepStatus.COMPLETED: frozenset({Phase.NONE}),
    StepStatus.FAILED: frozenset({Phase.NONE}),
    StepStatus.WAITING_FOR_HUMAN: frozenset({Phase.GATE}),
    StepStatus.CANCELLED: frozenset({Phase.NONE}),
}
_NO_OUTPUT = frozenset({StepStatus.PENDING, StepStatus.IN_PROGRESS, StepStatus.CANCELLED})


class Breach(str):
    """A broken invariant in words, with its stable code."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, code: str, words: str) -> Self:
        made = super().__new__(cls, words)
        made.code = code
        return made


def broken(row: Instance, definition: Definition | None = None) -> list[Breach]:
    """List every broken invariant of one row, and of the row beside its definition where that is given."""
    if row.expired:
        return _broken_stub(row)
    reasons = _broken_whole(row)
    for step_id in row.steps:
        reasons += broken_step(row, step_id)
    reasons += _broken_timers(row)
    if definition is not None:
        reasons += _broken_by_definition(row, definition)
    return reasons


def broken_change(old: Instance, new: Instance) -> list[Breach]:
    """List broken invariants between two versions of a row: the cheap ones, for the hot path."""
    reasons: list[Breach] = []
    if new.version != old.version + 1:
        reasons.append(Breach("version_step", f"version went from {old.version} to {new.version}"))
    if new.updated_at < old.updated_at:
        reasons.append(
            Breach("updated_at_went_back", f"updated_at went back from {old.updated_at} to {new.updated_at}")
        )
    if old.status in _FINAL and new.status is not old.status:
        reasons.append(Breach("final_status_changed", f"{old.status} is final, yet it became {new.status}"))
    if new.size > MAX_WRITTEN_BYTES and new.size > old.size:
        reasons.append(Breach("size_grew", f"size grew to {new.size}, at most {MAX_WRITTEN_BYTES}"))
    if (new.status in TERMINAL) != (new.ended_at > 0):
        reasons.append(Breach("ended_at", f"status is {new.status}, ended_at {new.ended_at}"))
    return reasons


def broken_step(row: Instance, step_id: str) -> list[Breach]:
    """List broken invariants of one step and its timers."""
    step = row.steps[step_id]
    status = step.status
    reasons: list[Breach] = []
    if step.phase not in _PHASES[status]:
        reasons.append(Breach("step_phase", f"step {step_id}: {status} in phase {step.phase.value!r}"))
    if step.output is not None and (status in _NO_OUTPUT or (status is _FAILED and step.error_code != REJECTED)):
        reasons.append(Breach("step_has_output", f"step {step_id}: {status} has an output"))
    if status is _FAILED and not step.error_code:
        reasons.append(Breach("step_without_code", f"step {step_id}: FAILED without a code"))
    if step.answers and status is not _IN_PROGRESS:
        reasons.append(Breach("step_keeps_answers", f"step {step_id}: {status} keeps answers"))
    if status is _IN_PROGRESS or status is _WAITING:
        if row.status in TERMINAL:
            reasons.append(
                Breach("step_lives_after_end", f"step {step_id}: {status} although the ceremony is {row.status}")
            )
        reasons += _broken_live_timers(row, step_id, step)
    return reasons


def _broken_live_timers(row: Instance, step_id: str, step: StepState) -> list[Breach]:
    reasons: list[Breach] = []
    for prefix in OF_PHASE[step.phase]:
        timer = row.timers.get(prefix + step_id)
        if timer is None:
            if prefix not in _OPTIONAL or step.phase is Phase.UNREACHABLE:
                reasons.append(
                    Breach("timer_missing", f"step {step_id}: phase {step.phase.value} without timer {prefix}{step_id}")
                )
        elif timer.attempt != step.attempt:
            reasons.append(
                Breach(
                    "timer_attempt", f"timer {prefix}{step_id}: attempt {timer.attempt}, the live one is {step.attempt}"
                )
            )
    return reasons


def _broken_stub(row: Instance) -> list[Breach]:
    reasons: list[Breach] = []
    if row.status not in TERMINAL:
        reasons.append(Breach("stub_not_ended", f"a stub is {row.status}"))
    if row.steps or row.inputs or row.size:
        reasons.append(Breach("stub_not_empty", "a stub holds steps or inputs"))
    if set(row.timers) != {EXPIRE}:
        reasons.append(Breach("stub_timers", "a stub has other timers than expire"))
    return reasons


def _broken_whole(row: Instance) -> list[Breach]:
    reasons: list[Breach] = []
    if row.version < 1:
        reasons.append(Breach("version_invalid", f"version is {row.version}"))
    if row.updated_at < row.created_at:
        reasons.append(Breach("updated_before_created", "updated_at lies before created_at"))
    if (row.status in TERMINAL) != (row.ended_at > 0):
        reasons.append(Breach("ended_at", f"status is {row.status}, ended_at {row.ended_at}"))
    if (row.status is CeremonyStatus.PAUSED) != (row.paused_at > 0):
        reasons.append(Breach("paused_at", f"status is {row.status}, paused_at {row.paused_at}"))
    if len(row.command_digests) > len(row.command_ids):
        reasons.append(
            Breach(
                "digests_without_ids",
                f"{len(row.command_digests)} digests of {len(row.command_ids)} command ids are kept",
            )
        )
    if row.asked_triggers and row.status is not CeremonyStatus.PAUSED:
        reasons.append(
            Breach("triggers_without_pause", f"status is {row.status}, yet triggers of agents wait for a resume")
        )
    if len(row.command_ids) > KEPT_COMMAND_IDS:
        reasons.append(Breach("too_many_command_ids", f"{len(row.command_ids)} command ids are kept"))
    size = row.inputs_size + row.approvals_size + sum(step.size + step.gathered for step in row.steps.values())
    if row.size != size:
        reasons.append(Breach("size_differs", f"size is {row.size}, its parts make {size}"))
    if row.size > MAX_WRITTEN_BYTES:
        reasons.append(Breach("size_exceeded", f"size is {row.size}, at most {MAX_WRITTEN_BYTES}"))
    return reasons


def _broken_timers(row: Instance) -> list[Breach]:
    known = {prefix + step_id for step_id, step in row.steps.items() for prefix in OF_PHASE[step.phase]}
    reasons = [
        Breach("timer_of_nothing", f"timer {timer_id} of no live attempt")
        for timer_id in row.timers
        if timer_id not in known | RUN_ON
    ]
    if row.status in TERMINAL:
        if set(row.timers) != {EXPIRE}:
            reasons.append(Breach("timers_after_end", f"ended, yet its timers are {sorted(row.timers)}"))
    elif CEREMONY_MAX not in row.timers or EXPIRE in row.timers:
        reasons.append(Breach("timers_of_life", "a live ceremony has ceremony_max and not expire"))
    reasons += [
        Breach("timer_due", f"timer {timer_id} is due at {timer.due}")
        for timer_id, timer in row.timers.items()
        if timer.due < 0
    ]
    return reasons


def _broken_by_definition(row: Instance, definition: Definition) -> list[Breach]:
    reasons: list[Breach] = []
    state = definition.states.get(row.state)
    if row.definition_hash != definition.hash:
        reasons.append(Breach("definition_differs", "it is pinned to another definition"))
    if state is None:
        reasons.append(Breach("state_unknown", f"state {row.state!r} is not in its definition"))
    elif state.terminal != (row.status is CeremonyStatus.COMPLETED):
        reasons.append(Breach("status_of_state", f"status is {row.status} in state {row.state}"))
    if set(row.steps) != set(definition.steps):
        reasons.append(Breach("steps_differ", "its steps are not those of its definition"))
        return reasons
    if not set(row.selected) <= set(definition.steps):
        reasons.append(Breach("selected_unknown", "it selects steps that its definition does not have"))
    for step_id, step in row.steps.items():
        if step.phase is not Phase.NONE and definition.steps[step_id].state != row.state:
            reasons.append(Breach("step_lives_elsewhere", f"step {step_id} is {step.status} in a state that was left"))
    reasons += [
        Breach("visit_unknown", f"visited state {name!r} is not in its definition")
        for name in row.visits
        if name not in definition.states
    ]
    reasons += [
        Breach("guard_unknown", f"guard {name!r} is not in its definition")
        for name in row.guard_approvals
        if name not in definition.guards
    ]
    return reasons
