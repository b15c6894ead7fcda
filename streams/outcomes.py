"""Counts the outcomes of a folded batch by definition and handler, with durations between times of the log.

A step's duration runs from the command that started its newest attempt to the one that ended it, a gate's from its
opening to its end, a ceremony's from its start to its end: append times of commands, never the clock of a host.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

import structlog

from streams.folded import Folded
from streams.histograms import Observations
from streams.metrics import Metrics
from tables.definition import Definition, Step
from tables.effects import Ended, Event
from tables.fold.step_life import PUBLISH_COMPLETED, STEP_EXECUTED, STEP_RETRYING
from tables.instance import Instance, StepStatus

log = structlog.get_logger(__name__)

STARTED = "ceremony.started"
# Subjects of the events that are counted here, beside those of steps that ended.
COUNTED = frozenset({STARTED, STEP_RETRYING, PUBLISH_COMPLETED})
# Label in place of a definition, or of a handler, that this release cannot read.
UNREADABLE = "unreadable"
_FAILED, _CANCELLED, _OPENED = (
    StepStatus.FAILED.value,
    StepStatus.CANCELLED.value,
    StepStatus.WAITING_FOR_HUMAN.value,
)


class Outcomes:
    """Adds folded batches to the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def count(self, batch: Iterable[Folded]) -> None:
        """Count a batch. It is folded already, so an error is only logged."""
        found: dict[str, DefinitionOutcomes] = {}
        try:
            for folded in batch:
                if not folded.effects:
                    continue
                definition = folded.definition
                key = "" if definition is None else definition.hash
                outcomes = found.get(key)
                if outcomes is None:
                    outcomes = found[key] = DefinitionOutcomes(self._metrics, definition)
                outcomes.see(folded)
        except MemoryError:
            raise
        except Exception:
            log.exception("outcomes_not_counted")
        for outcomes in found.values():
            try:
                outcomes.add()
            except MemoryError:
                raise
            except Exception:
                log.exception("outcomes_not_counted")


class DefinitionOutcomes:
    """The outcomes that a batch had for ceremonies of one definition; `add` adds them to the metrics at once."""

    def __init__(self, metrics: Metrics, definition: Definition | None) -> None:
        self._metrics = metrics
        self._name = metrics.definition_names.of(UNREADABLE if definition is None else definition.name)
        self._definition = definition
        self._started = 0
        self._ended: Tally[str] = Tally()
        """By status."""
        self._steps: Tally[tuple[str, str]] = Tally()
        """By step and status."""
        self._timed: Tally[tuple[str, str]] = Tally()
        """Those of them that took time, by the same; all others ended in the command that started them."""
        self._retries: Tally[str] = Tally()
        """By step."""
        self._published: Tally[tuple[str, str]] = Tally()
        """By step, and whether JetStream had the message already."""

    def see(self, folded: Folded) -> None:
        """Count the effects of one command."""
        for effect in folded.effects:
            if effect.__class__ is Event:
                if effect.subject == STEP_EXECUTED:
                    self._step(effect, folded)
                elif effect.subject in COUNTED:
                    self._event(effect)
            elif effect.__class__ is Ended:
                self._end(effect, folded.after)

    def _event(self, event: Event) -> None:
        subject = event.subject
        if subject == STEP_RETRYING:
            self._retries[event.payload["step_id"]] += 1
        elif subject == PUBLISH_COMPLETED:
            self._published[event.payload["step_id"], str(event.payload["duplicate"]).lower()] += 1
        elif subject == STARTED:
            self._started += 1

    def _end(self, effect: Ended, row: Instance | None) -> None:
        self._ended[effect.status] += 1
        if row is not None and row.ended_at:
            self._metrics.lifetime.of(self._name).add((row.ended_at - row.created_at) / 1000)

    def _step(self, event: Event, folded: Folded) -> None:
        payload = event.payload
        step_id = payload["step_id"]
        key = step_id, payload["status"]
        self._steps[key] += 1
        state = None if folded.after is None else folded.after.steps.get(step_id)
        if state is None or state.started_at != event.at or state.attempt != payload["attempt"]:
            self._time(event, key, folded)

    def _time(self, event: Event, key: tuple[str, str], folded: Folded) -> None:
        """Time an attempt that began in an earlier command."""
        step_id, status = key
        began = folded.began(step_id, event.payload["attempt"])
        if status == _OPENED or not began:
            return
        self._timed[key] += 1
        if (durations := self._durations(step_id, status)) is not None:
            durations.add((event.at - began) / 1000)

    def _durations(self, step_id: str, status: str) -> Observations | None:
        """Return the durations that an end of this step belongs to; a step that was cancelled has none."""
        step = self._of(step_id)
        if step is not None and step.gate is not None:
            return self._metrics.gates.of(self._name)
        return None if status == _CANCELLED else self._metrics.step_seconds.of(_handler(step))

    def add(self) -> None:
        """Add the counts to the metrics."""
        metrics, name = self._metrics, self._name
        for (step_id, status), count in self._steps.items():
            step = self._of(step_id)
            metrics.steps.labels(name, _handler(step), status).inc(count)
            if status == _FAILED and step is not None and step.publishes:
                metrics.publish_failures.labels(name, step.handler).inc(count)
            at_once = 0 if status == _OPENED else count - self._timed[step_id, status]
            if at_once and (durations := self._durations(step_id, status)) is not None:
                durations.add(0.0, at_once)
        for step_id, count in self._retries.items():
            metrics.retries.labels(name, _handler(self._of(step_id))).inc(count)
        for (step_id, duplicate), count in self._published.items():
            metrics.published.labels(name, _handler(self._of(step_id)), duplicate).inc(count)
        for status, count in self._ended.items():
            metrics.ended.labels(name, status).inc(count)
        if self._started:
            metrics.started.labels(name).inc(self._started)

    def _of(self, step_id: str) -> Step | None:
        return None if self._definition is None else self._definition.steps.get(step_id)


def _handler(step: Step | None) -> str:
    return UNREADABLE if step is None else step.handler
