"""The next row: the only place where a live instance is made or replaced.

It works on a copy: scalars at once, each dict when it is first changed. `build()` raises the version and validates the
changed parts; with `check_fully` it validates the whole row.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from msgspec.structs import replace

from tables.errors import InvariantBroken
from tables.instance import (
    KEPT_COMMAND_IDS,
    ROW_FORMAT,
    TERMINAL,
    Approval,
    AskedTrigger,
    CeremonyStatus,
    Instance,
    Pauser,
    Phase,
    StepState,
    Timer,
    approvals_weight,
)
from tables.invariants import broken, broken_change, broken_step
from tables.limits import MAX_COUNTED_BYTES, MAX_ID_CHARACTERS, clip
from tables.timers import CEREMONY_MAX, EXPIRE, OF_PHASE, RUN_ON

_PAUSED = CeremonyStatus.PAUSED  # on Python 3.11 each look-up of a member costs a call
_MOVING = frozenset(CeremonyStatus) - TERMINAL - {CeremonyStatus.PAUSED}
_NEW = StepState()


class NextRow:
    """The next version of one row, under construction."""

    check_fully: ClassVar[bool] = False
    """Validate the whole row on every build; for tests and debug mode."""

    __slots__ = (
        "_own_approvals",
        "_own_steps",
        "_own_timers",
        "_peeked",
        "_touched",
        "approvals_size",
        "asked_triggers",
        "at",
        "base",
        "changed",
        "command_digests",
        "command_ids",
        "ended_at",
        "error_code",
        "error_message",
        "guard_approvals",
        "inputs",
        "now",
        "paused_at",
        "paused_by",
        "size",
        "state",
        "status",
        "steps",
        "timers",
        "version",
        "visits",
    )

    def __init__(self, base: Instance, now: int) -> None:
        self.base = base
        """The row before the command."""
        self.at = now
        """Append time of the command. Timers are set by it: a clock that was ahead must not keep later timers late."""
        self.now = max(base.updated_at, now)
        self.version = base.version + 1
        self.state = base.state
        self.status = base.status
        self.inputs = base.inputs
        self.ended_at = base.ended_at
        self.steps = base.steps
        self.visits = base.visits
        self.guard_approvals = base.guard_approvals
        self.timers = base.timers
        self.paused_at = base.paused_at
        self.paused_by = base.paused_by
        self.command_ids = base.command_ids
        self.command_digests = base.command_digests
        self.asked_triggers = base.asked_triggers
        self.error_code = base.error_code
        self.error_message = base.error_message
        self.size = base.size
        self.approvals_size = base.approvals_size
        self.changed = False
        self._own_steps = self._own_timers = self._own_approvals = False
        self._touched: dict[str, None] = {}  # in order, each once
        self._peeked: Instance | None = base

    @classmethod
    def start(
        cls,
        *,
        instance_id: str,
        ceremony_id: str,
        story_id: str,
        definition_name: str,
        definition_hash: str,
        correlation_id: str,
        requested_by: str,
        start_digest: str,
        inputs: dict[str, Any],
        inputs_size: int,
        selected: tuple[str, ...],
        step_ids: tuple[str, ...],
        now: int,
        traceparent: str = "",
    ) -> NextRow:
        """Return the first row of a ceremony, in no state yet: the caller enters the initial one."""
        builder = cls(
            Instance(
                instance_id=instance_id,
                ceremony_id=ceremony_id,
                story_id=story_id,
                definition_name=definition_name,
                definition_hash=definition_hash,
                correlation_id=correlation_id,
                requested_by=requested_by,
                start_digest=start_digest,
                state="",
                status=CeremonyStatus.RUNNING,
                created_at=now,
                updated_at=now,
                traceparent=traceparent,
                inputs=inputs,
                inputs_size=inputs_size,
                selected=selected,
                steps=dict.fromkeys(step_ids, _NEW),
                size=inputs_size,
            ),
            now,
        )
        builder.changed = True
        return builder

    # -- reads

    @property
    def instance_id(self) -> str:
        return self.base.instance_id

    @property
    def ceremony_id(self) -> str:
        return self.base.ceremony_id

    @property
    def story_id(self) -> str:
        return self.base.story_id

    @property
    def correlation_id(self) -> str:
        return self.base.correlation_id

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL

    def moves(self) -> bool:
        """Neither ended nor PAUSED."""
        return self.status in _MOVING

    @property
    def paused(self) -> bool:
        return self.status is _PAUSED

    def has_room(self, state: StepState, old: StepState, limit: int) -> bool:
        """Return whether the row stays within a limit of bytes when a step's state takes the place of the old one."""
        return self.size + state.size + state.gathered - old.size - old.gathered <= limit

    def peek(self) -> Instance:
        """Return the row as it stands, to be read only."""
        if self._peeked is None:
            self._peeked = self._assemble()
        return self._peeked

    # -- changes

    def touch(self) -> None:
        """Make a new version of a row that is otherwise unchanged (a restored one)."""
        self._change()

    def _change(self) -> None:
        self.changed = True
        self._peeked = None

    def set_step(self, step_id: str, state: StepState, limit: int = sys.maxsize) -> bool:
        """Replace the state of one step, and adapt the size; False, and nothing changes, above a limit of bytes."""
        old = self.steps[step_id]
        size = self.size + state.size + state.gathered - old.size - old.gathered
        if size > limit:
            return False
        if not self._own_steps:
            self.steps = dict(self.steps)
            self._own_steps = True
        self.size = size
        self.steps[step_id] = state
        self._touched[step_id] = None
        self.changed = True
        self._peeked = None
        return True

    def set_timer(self, timer_id: str, pause: int, attempt: int = 0) -> int:
        """Let a timer fire `pause` milliseconds from now; while PAUSED, from the resume on. Returns its field `due`."""
        due = pause if self.status is _PAUSED and timer_id not in RUN_ON else self.at + pause
        self._timers()[timer_id] = Timer(due, attempt)
        return due

    def drop_timer(self, timer_id: str) -> None:
        if timer_id in self.timers:
            del self._timers()[timer_id]

    def drop_step_timers(self, step_id: str, phase: Phase) -> None:
        """Drop the timers that a step in this phase may hold."""
        for prefix in OF_PHASE[phase]:
            timer_id = prefix + step_id
            if timer_id in self.timers:
                del self._timers()[timer_id]

    def _timers(self) -> dict[str, Timer]:
        if not self._own_timers:
            self.timers = dict(self.timers)
            self._own_timers = True
        self.changed = True
        self._peeked = None
        return self.timers

    def enter(self, state_id: str) -> int:
        """Enter a state, and drop the approvals of the former visit. Returns the number of the new visit."""
        visit = self.visits.get(state_id, 0) + 1
        self.state = state_id
        self.visits = {**self.visits, state_id: visit}
        self.guard_approvals = {}
        self._own_approvals = True
        self._count_approvals()
        self._change()
        return visit

    def approve_guard(self, guard: str, approval: Approval) -> bool:
        """Keep the approval of a guard; False, and nothing changes, where the row has no room for it."""
        known = self.guard_approvals.get(guard, ())
        if self.size + approvals_weight((approval,)) - approvals_weight(known) > MAX_COUNTED_BYTES:
            return False
        self._approvals()[guard] = (approval,)
        self._count_approvals()
        return True

    def withdraw_guard(self, guard: str) -> None:
        self._approvals().pop(guard, None)
        self._count_approvals()

    def _approvals(self) -> dict[str, tuple[Approval, ...]]:
        if not self._own_approvals:
            self.guard_approvals = dict(self.guard_approvals)
            self._own_approvals = True
        self._change()
        return self.guard_approvals

    def _count_approvals(self) -> None:
        """Count the approvals of guards; an older release counted none."""
        total = sum(map(approvals_weight, self.guard_approvals.values())) if self.guard_approvals else 0
        self.size += total - self.approvals_size
        self.approvals_size = total

    def set_status(self, status: CeremonyStatus) -> None:
        """Change the status to RUNNING or WAITING_FOR_HUMAN."""
        self.status = status
        self._change()

    def end(self, status: CeremonyStatus, code: str, message: str, expire_in: int) -> None:
        """Set a terminal status; only the timer `expire` remains."""
        self.status = status
        self.ended_at = max(self.now, 1)
        self.paused_at = 0
        self.paused_by = None
        self.asked_triggers = ()
        self.error_code = code
        self.error_message = message
        self.timers = {EXPIRE: Timer(self.at + expire_in)}
        self._own_timers = True
        self._change()

    def reopen(self, ceremony_max: int) -> None:
        """Open an ended ceremony again, with a new time limit."""
        self.status = CeremonyStatus.RUNNING
        self.ended_at = 0
        self.error_code = self.error_message = ""
        self.timers = {CEREMONY_MAX: Timer(self.at + ceremony_max)}
        self._own_timers = True
        self._change()

    def pause(self, by: Pauser) -> None:
        """Stop step and gate timers; each keeps its remaining time."""
        self.status = CeremonyStatus.PAUSED
        self.paused_by = by
        self.paused_at = max(self.now, 1)
        self._shift({i: t for i, t in self.timers.items() if i not in RUN_ON}, -self.at)

    def resume(self) -> None:
        """Start the stopped timers again, with their remaining time."""
        self.status = CeremonyStatus.RUNNING
        self.paused_at = 0
        self.paused_by = None
        self._shift({i: t for i, t in self.timers.items() if i not in RUN_ON}, self.at)

    def _shift(self, stopped: dict[str, Timer], by: int) -> None:
        timers = self._timers()
        for timer_id, timer in stopped.items():
            timers[timer_id] = Timer(max(timer.due + by, 0), timer.attempt)

    def remember(self, command_id: str, digest: str = "") -> None:
        """Keep an idempotency key, with the digest of its operation."""
        self.command_ids = (*self.command_ids, clip(command_id, MAX_ID_CHARACTERS))[-KEPT_COMMAND_IDS:]
        if digest or self.command_digests:
            self.command_digests = (*self.command_digests, digest)[-KEPT_COMMAND_IDS:]
        self._change()

    def knows(self, command_id: str) -> bool:
        return bool(command_id) and clip(command_id, MAX_ID_CHARACTERS) in self.command_ids

    def keep_trigger(self, asked: AskedTrigger) -> None:
        """Keep a trigger until the resume; of one trigger only the first request, for it moves the ceremony once."""
        if all(kept.trigger != asked.trigger for kept in self.asked_triggers):
            self.asked_triggers = (*self.asked_triggers, asked)
            self._change()

    def take_asked_triggers(self) -> tuple[AskedTrigger, ...]:
        """Return the triggers kept during the pause, which are kept no longer."""
        taken, self.asked_triggers = self.asked_triggers, ()
        if taken:
            self._change()
        return taken

    def digest_of(self, command_id: str) -> str:
        """Return the digest kept with a known id; "" where an older release kept none."""
        from_end = len(self.command_ids) - self.command_ids.index(clip(command_id, MAX_ID_CHARACTERS))
        return self.command_digests[-from_end] if from_end <= len(self.command_digests) else ""

    # -- the new row

    def build(self) -> Instance:
        """Return the new row. Raises InvariantBroken, which means a bug."""
        row = self._peeked or self._assemble()
        reasons = broken_change(self.base, row)
        for step_id in self._touched:
            reasons += broken_step(row, step_id)
        if NextRow.check_fully:
            reasons += broken(row)
        if reasons:
            raise InvariantBroken(row.instance_id, reasons)
        return row

    def _assemble(self) -> Instance:
        """Make the row by position: by name it would cost three times as much, and every command makes one.

        Python makes a list of more than 30 arguments first, so the three that are seldom set follow.
        """
        base = self.base
        row = Instance(
            base.instance_id,
            base.ceremony_id,
            base.story_id,
            base.definition_name,
            base.definition_hash,
            base.correlation_id,
            base.requested_by,
            base.start_digest,
            self.state,
            self.status,
            base.created_at,
            self.now,
            ROW_FORMAT,
            self.version,
            self.ended_at,
            self.inputs,
            base.selected,
            self.steps,
            self.visits,
            self.guard_approvals,
            self.timers,
            self.paused_at,
            self.paused_by,
            self.command_ids,
            self.error_code,
            self.error_message,
            self.size,
            base.inputs_size,
            base.expired,
            self.approvals_size,
        )
        if self.command_digests or self.asked_triggers or base.traceparent:
            return replace(
                row,
                command_digests=self.command_digests,
                asked_triggers=self.asked_triggers,
                traceparent=base.traceparent,
            )
        return row


def raised(row: Instance, version_by: int, attempts_by: int) -> Instance:
    """Return the row with its version and attempt numbers raised, so that new answers are never taken for old ones."""
    steps = {
        step_id: replace(step, attempt=step.attempt + attempts_by) if step.attempt else step
        for step_id, step in row.steps.items()
    }
    timers = {
        timer_id: Timer(timer.due, timer.attempt + attempts_by) if timer_id not in RUN_ON else timer
        for timer_id, timer in row.timers.items()
    }
    return replace(row, version=row.version + version_by, steps=steps, timers=timers)
