"""Follows the events of one ceremony along its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.checker.envelopes import ENDS, STATUS, Event
from tests.checker.recording import Definition
from tests.checker.violations import Violation

CONCLUDED = frozenset({"COMPLETED", "FAILED", "CANCELLED"})


class Path:
    """One ceremony, followed by its events; `violations` collects the broken rules."""

    def __init__(self, instance_id: str, definition: Definition) -> None:
        self.instance_id = instance_id
        self.violations: list[Violation] = []
        self.state = definition.initial
        self.begun = False
        self.ended = ""
        """Final status; empty before the end, and after a retry has reopened it."""
        self.paused = False
        self.steps: dict[str, str] = {}
        """Status of steps by their last result; if their state was entered again, in the present visit."""
        self.version = 0
        self._definition = definition
        self._ordinal = -1
        self._attempts: dict[str, int] = {}
        self._concluded: set[tuple[str, Any]] = set()
        self._opened: set[str] = set()
        self._requested: set[str] = set()
        self._publications: dict[str, Event] = {}

    def follow(self, event: Event) -> None:
        """Take the next message of this ceremony, in stream order."""
        if event.publication:
            self._publications[event.key] = event
            return
        self._order(event)
        if not self.begun and event.subject != "ceremony.started":
            self._found("not_begun", event, f"{event.subject} comes before ceremony.started")
            self.begun = True
        if self.ended and not self._may_follow_end(event):
            self._found("event_after_end", event, f"{event.subject} comes after the end ({self.ended})")
        rule = _RULES.get(event.subject)
        if rule is not None:
            rule(self, event)

    def _found(self, rule: str, event: Event, text: str) -> None:
        self.violations.append(Violation(rule, self.instance_id, event.sequence, text))

    def _order(self, event: Event) -> None:
        here, before = (event.version, event.ordinal), (self.version, self._ordinal)
        if here < before:
            self._found("order_broken", event, f"{event.key} comes after version {before[0]}, ordinal {before[1]}")
        self.version, self._ordinal = max(here, before)

    def _may_follow_end(self, event: Event) -> bool:
        if event.subject in ENDS:
            return True  # a second end has its own rule
        if event.subject == "ceremony.publish.completed":
            return event.payload.get("late") is True
        return event.subject == "ceremony.resumed" and self.ended == "FAILED"

    def _started(self, event: Event) -> None:
        if self.begun:
            self._found("started_twice", event, "ceremony.started comes again")
        self.begun = True

    def _transition(self, event: Event) -> None:
        source, target = event.payload.get("from_state"), event.payload.get("to_state")
        trigger = event.payload.get("trigger")
        if (source, target, trigger) not in self._definition.transitions:
            self._found("transition_unknown", event, f"{source} -> {target} by {trigger} is none of the definition's")
        if source != self.state:
            self._found("path_broken", event, f"it leaves {source}, but the ceremony is in {self.state}")
        self.state = str(target)
        for step, state in self._definition.steps.items():
            if state == self.state:
                self.steps.pop(step, None)
                self._opened.discard(step)

    def _step(self, event: Event) -> str | None:
        """The step of an event, if the definition has it; checks that the event comes in the step's state."""
        step = str(event.payload.get("step_id"))
        if step not in self._definition.steps:
            self._found("step_unknown", event, f"the definition has no step {step}")
            return None
        home, says = self._definition.steps[step], event.payload.get("current_state", self.state)
        if home != self.state or says != self.state:
            text = f"{step} belongs to {home} and says {says}, the ceremony is in {self.state}"
            self._found("step_outside_state", event, text)
        return step

    def _executed(self, event: Event) -> None:
        step = self._step(event)
        if step is None:
            return
        status, attempt = str(event.payload.get("status")), event.payload.get("attempt")
        self.steps[step] = status
        self._attempt(event, step, attempt)
        if status in CONCLUDED:
            if (step, attempt) in self._concluded:
                self._found("step_concluded_twice", event, f"attempt {attempt} of {step} was concluded before")
            self._concluded.add((step, attempt))

    def _attempted(self, event: Event) -> None:
        step = self._step(event)
        if step is not None:
            self._attempt(event, step, event.payload.get("attempt"))

    def _attempt(self, event: Event, step: str, attempt: Any) -> None:
        last = self._attempts.get(step, 0)
        if not isinstance(attempt, int) or attempt < last:
            self._found("attempt_fell", event, f"attempt {attempt} of {step} comes after attempt {last}")
            return
        self._attempts[step] = attempt

    def _gate_opened(self, event: Event) -> None:
        step = self._step(event)
        if step is not None:
            self._opened.add(step)

    def _gate_decided(self, event: Event) -> None:
        gate = str(event.payload.get("gate"))
        if gate in self._definition.gates and gate not in self._opened:
            self._found("gate_not_opened", event, f"{gate} is decided and was not opened")
        self._opened.discard(gate)

    def _publish_requested(self, event: Event) -> None:
        self._requested.add(str(event.payload.get("idempotency_key")))

    def _publish_completed(self, event: Event) -> None:
        payload = event.payload
        key = str(payload.get("idempotency_key"))
        if key not in self._requested:
            self._found("publish_not_requested", event, f"{key} was not requested")
        if payload.get("stream") != "CEREMONY":
            return
        sent = self._publications.get(key)
        if sent is None or (sent.subject, sent.sequence) != (payload.get("subject"), payload.get("sequence")):
            text = f"{key} is not at sequence {payload.get('sequence')} of {payload.get('subject')}"
            self._found("publish_message_lost", event, text)

    def _end(self, event: Event) -> None:
        if self.ended:
            self._found("two_ends", event, f"{event.subject} comes after the end ({self.ended})")
        self.ended = STATUS[event.subject]
        self.paused = False
        if event.subject == "ceremony.completed" and self.state not in self._definition.terminal:
            self._found("completed_outside_terminal", event, f"{self.state} is no terminal state")

    def _paused(self, _event: Event) -> None:
        self.paused = True

    def _resumed(self, _event: Event) -> None:
        self.paused = False
        if self.ended:
            # A retry of a FAILED ceremony: steps that its end cancelled run again.
            self.ended = ""
            self.steps = {step: status for step, status in self.steps.items() if status != "CANCELLED"}

    @property
    def in_terminal_state(self) -> bool:
        return self.state in self._definition.terminal


_RULES: dict[str, Callable[[Path, Event], None]] = {
    "ceremony.started": Path._started,
    "ceremony.transition.applied": Path._transition,
    "ceremony.step.executed": Path._executed,
    "ceremony.step.retrying": Path._attempted,
    "ceremony.step.ordered": Path._attempted,
    "ceremony.gate.opened": Path._gate_opened,
    "ceremony.gate.decided": Path._gate_decided,
    "ceremony.publish.requested": Path._publish_requested,
    "ceremony.publish.completed": Path._publish_completed,
    "ceremony.paused": Path._paused,
    "ceremony.resumed": Path._resumed,
    **dict.fromkeys(ENDS, Path._end),
}
