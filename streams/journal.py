"""The journal of the fold: log lines on steps, transitions and publications, written once for each visible batch.

It is read from the decisions of a batch, after the fold, so the fold knows nothing of it. After a kill -9 the batches
since the last checkpoint are folded again, and their lines repeat: with the same instance and version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog

from ports.clock import Clock
from ports.lines import LineLevel, LineSink, LogLine
from streams.folded import Folded
from tables.effects import Effect, Event, StepRequested
from tables.fold.context import Evaluation
from tables.fold.set_aside import BY
from tables.fold.start import START_REFUSED
from tables.fold.step_life import STEP_EXECUTED, STEP_RETRYING
from tables.instance import REJECTED, Instance, Phase, StepStatus

log = structlog.get_logger(__name__)

# Lines of level INFO in a second; a worker under full load has twenty times as many, at a seventh of its processor.
MOST_LINES_A_SECOND = 2000
# Warnings of one event and code in a minute; codes beyond MOST_CODES count as one.
MOST_WARNINGS, MOST_CODES = 3, 50
REPORT_INFO_SECONDS, REPORT_WARNINGS_SECONDS = 10.0, 60.0
TICK_SECONDS = 1.0
STEP_STARTED, TRANSITION_JUDGED, GUARD_UNJUDGED = "step_started", "transition_judged", "guard_unjudged"
PAUSED, LEFT_OUT = "ceremony.paused", "lines_left_out"
# Events that somebody should see; failed steps and pauses by the engine join them.
WARNED = frozenset({STEP_RETRYING, START_REFUSED, "ceremony.failed", "ceremony.timed_out"})
_MAY_WARN = WARNED | {STEP_EXECUTED, PAUSED}
# Fields of events that a line shows, by its name for them. Inputs, outputs and texts of gates stay out.
FIELDS: Mapping[str, str] = {
    "step_id": "step",
    "attempt": "attempt",
    "status": "status",
    "current_state": "state",
    "from_state": "from_state",
    "to_state": "to_state",
    "trigger": "trigger",
    "visit": "visit",
    "gate": "gate",
    "approved": "approved",
    "decided_by": "decided_by",
    "quorum": "quorum",
    "role": "role",
    "actor": "actor",
    "requested_by": "requested_by",
    "operation": "operation",
    "past_failed_steps": "past_failed_steps",
    "deadline": "deadline",
    "next_attempt_at": "next_attempt_at",
    "subject": "subject",
    "event_type": "event_type",
    "stream": "stream",
    "sequence": "sequence",
    "duplicate": "duplicate",
    "late": "late",
    "error_code": "code",
    "code": "code",
    "error_message": "reason",
    "reason": "reason",
}
_FAILED = StepStatus.FAILED.value
_ENDED = frozenset({_FAILED, StepStatus.COMPLETED.value, StepStatus.CANCELLED.value})
_ATTEMPT_ENDS = frozenset({STEP_EXECUTED, STEP_RETRYING})
_EMPTY = (None, "")
_RESULTS = {True: "true", False: "false", None: "failed"}
_NOT_JUDGED = {"result": "not_judged", "reason": "an earlier guard does not hold"}


class Repeats:
    """Lets the first lines of an event and code in each span through, and counts the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: Counter[tuple[str, str]] = Counter()
        self.left_out: Counter[str] = Counter()

    def lets_through(self, event: str, code: str) -> bool:
        key = (event, code)
        if key not in self._seen and len(self._seen) >= MOST_CODES:
            code, key = "others", (event, "others")
        self._seen[key] += 1
        if self._seen[key] <= self._most:
            return True
        self.left_out[f"{event} {code}" if code else event] += 1
        return False

    def begin(self) -> Mapping[str, int]:
        """Begin the next span; return the lines left out in the last one, by event and code."""
        left_out, self.left_out = self.left_out, Counter()
        self._seen.clear()
        return left_out


class Journal:
    """Writes the lines of batches, within bounds; lines left out are counted and reported."""

    def __init__(self, sink: LineSink, clock: Clock) -> None:
        self._sink = sink
        self._clock = clock
        self._warnings = Repeats(MOST_WARNINGS)
        self._retries = Repeats(MOST_WARNINGS)
        self._left_out: Counter[str] = Counter()
        self._room = float(MOST_LINES_A_SECOND)
        self._filled_at = self._info_at = self._warnings_at = clock.monotonic()

    async def run(self) -> None:
        """Report the lines left out, until cancelled."""
        try:
            while True:
                await self._clock.sleep(TICK_SECONDS)
                self.report()
        finally:
            self.report(ending=True)

    def write(self, batch: Sequence[Folded]) -> None:
        """Write the lines of one batch. It is folded already, so an error is only logged."""
        if not batch or not self._sink.wants(LineLevel.WARNING):
            return
        try:
            self._write(batch)
        except MemoryError:
            raise
        except Exception:
            log.exception("journal_failed")

    def _write(self, batch: Sequence[Folded]) -> None:
        ordinary = self._sink.wants(LineLevel.INFO)
        self._refill()
        lines: list[LogLine] = []
        for folded in batch:
            if folded.effects or folded.evaluations:
                self._one(folded, lines, ordinary=ordinary)
        if lines:
            self._sink.write(lines)

    def _one(self, folded: Folded, lines: list[LogLine], *, ordinary: bool) -> None:
        """Add the lines of one command; of a failure like many before it none, for an outage brings thousands."""
        warned = [
            effect
            for effect in folded.effects
            if effect.__class__ is Event and effect.subject in _MAY_WARN and _is_warned(effect)
        ]
        shown = [event for event in warned if self._warnings.lets_through(event.subject, _code(event))]
        unjudged = [name for name in folded.unjudged if self._warnings.lets_through(GUARD_UNJUDGED, name)]
        if ordinary and self._room >= 1 and len(shown) == len(warned) and self._is_new(folded):
            before = len(lines)
            lines += _Teller(folded).lines(unjudged)
            self._room -= len(lines) - before
            return
        if shown or unjudged:
            teller = _Teller(folded)
            lines += map(teller.event, shown)
            lines += map(teller.unjudged, unjudged)
        if ordinary:
            self._count(folded, warned)

    def _is_new(self, folded: Folded) -> bool:
        """Return False where the command only tries a step again that many others failed at with the same code."""
        if folded.before is None:
            return True
        for effect in folded.effects:
            if effect.__class__ is StepRequested:
                state = folded.before.steps[effect.step_id]
                if state.phase is Phase.BACKOFF:
                    return self._retries.lets_through(STEP_STARTED, state.error_code)
        return True

    def _count(self, folded: Folded, warned: Sequence[Event]) -> None:
        """Count the lines of level INFO that are not written."""
        left_out = self._left_out
        left_out.update([effect.subject for effect in folded.effects if effect.__class__ is Event])
        if warned:
            left_out.subtract([event.subject for event in warned])
        left_out[TRANSITION_JUDGED] += len(folded.evaluations)
        left_out[STEP_STARTED] += sum(1 for _ in _starts(folded.before, folded.effects))

    def _refill(self) -> None:
        now = self._clock.monotonic()
        self._room = min(MOST_LINES_A_SECOND, self._room + (now - self._filled_at) * MOST_LINES_A_SECOND)
        self._filled_at = now

    def report(self, *, ending: bool = False) -> None:
        """Report the lines left out in the spans that have ended; `ending`: in those under way too."""
        now = self._clock.monotonic()
        if ending or now - self._info_at >= REPORT_INFO_SECONDS:
            left_out, self._left_out = +self._left_out, Counter()
            self._tell(LineLevel.INFO, now - self._info_at, left_out)
            self._info_at = now
        if ending or now - self._warnings_at >= REPORT_WARNINGS_SECONDS:
            self._tell(LineLevel.WARNING, now - self._warnings_at, self._warnings.begin())
            self._retries.begin()
            self._warnings_at = now

    def _tell(self, level: LineLevel, seconds: float, left_out: Mapping[str, int]) -> None:
        if left_out and self._sink.wants(level):
            count = sum(left_out.values())
            line = {"event": LEFT_OUT, "level": level, "seconds": round(seconds), "count": count, "lines": {**left_out}}
            self._sink.write([line])


class _Teller:
    """Makes the lines of one command."""

    def __init__(self, folded: Folded) -> None:
        self._folded = folded
        known = folded.before if folded.after is None else folded.after
        self._shared: dict[str, Any] = {}
        if known is not None:
            self._shared = {
                "instance": known.instance_id,
                "definition": known.definition_name,
                "correlation_id": known.correlation_id,
                "version": known.version,
            }

    def lines(self, unjudged: Sequence[str]) -> Iterator[LogLine]:
        """Yield all lines, in the order in which things happened."""
        evaluations = self._folded.evaluations
        judged, count = 0, len(evaluations)
        starts = dict(_starts(self._folded.before, self._folded.effects))
        for ordinal, effect in enumerate(self._folded.effects):
            while judged < count and evaluations[judged].ordinal <= ordinal:
                yield self.judged(evaluations[judged])
                judged += 1
            if ordinal in starts:
                yield self._started(*starts[ordinal])
            if isinstance(effect, Event):
                yield self.event(effect)
        for evaluation in evaluations[judged:]:
            yield self.judged(evaluation)
        yield from map(self.unjudged, unjudged)

    def event(self, event: Event) -> LogLine:
        line = {
            "event": event.subject,
            "level": LineLevel.WARNING if _is_warned(event) else LineLevel.INFO,
            "instance": event.instance_id,
            **self._shared,
            "correlation_id": event.correlation_id,
        }
        for fields in (event.payload, event.metadata or {}):
            for name, value in fields.items():
                shown = FIELDS.get(name)
                if shown is not None and value not in _EMPTY:
                    line[shown] = value
        if event.subject == START_REFUSED:
            line["reason"] = event.payload["message"]
        elif event.subject in _ATTEMPT_ENDS:
            self._add_duration(line, event)
        return line

    def _add_duration(self, line: dict[str, Any], event: Event) -> None:
        """Add the time since the attempt began, where a row knows it."""
        payload = event.payload
        if event.subject == STEP_EXECUTED and payload["status"] not in _ENDED:
            return
        if began := self._folded.began(payload["step_id"], payload["attempt"]):
            line["duration_ms"] = event.at - began

    def _started(self, step: str, attempt: int) -> LogLine:
        return {"event": STEP_STARTED, "level": LineLevel.INFO, **self._shared, "step": step, "attempt": attempt}

    def judged(self, evaluation: Evaluation) -> LogLine:
        transition = evaluation.transition
        line = {
            "event": TRANSITION_JUDGED,
            "level": LineLevel.INFO,
            **self._shared,
            "from_state": transition.from_state,
            "to_state": transition.to_state,
            "trigger": transition.trigger,
            "holds": evaluation.holds,
        }
        results = evaluation.results
        if results:
            guards = [{"guard": name, "result": _RESULTS[held], "reason": why} for name, held, why in results]
            line["guards"] = guards + [{"guard": name, **_NOT_JUDGED} for name in transition.guards[len(results) :]]
        elif evaluation.undone is not None:
            line["reason"] = f"step `{evaluation.undone.id}` is not COMPLETED"
        elif not evaluation.holds:
            line["reason"] = "too_much_work: the work of the command is spent"
        return line

    def unjudged(self, guard: str) -> LogLine:
        reason = self._folded.unjudged[guard]
        return {
            "event": GUARD_UNJUDGED,
            "level": LineLevel.WARNING,
            **self._shared,
            "guard": guard,
            "reason": reason,
        }


def _starts(row: Instance | None, effects: Sequence[Effect]) -> Iterator[tuple[int, tuple[str, int]]]:
    """Yield step and attempt of each attempt that begins, with the ordinal of the first effect that shows it."""
    begun: set[tuple[str, int]] = set()
    for ordinal, effect in enumerate(effects):
        if isinstance(effect, StepRequested):
            step, attempt = effect.step_id, effect.attempt
        elif isinstance(effect, Event) and effect.subject in _ATTEMPT_ENDS:
            step, attempt = effect.payload["step_id"], effect.payload["attempt"]
        else:
            continue
        before = None if row is None else row.steps.get(step)
        if (before is None or before.attempt != attempt) and (step, attempt) not in begun:
            begun.add((step, attempt))
            yield ordinal, (step, attempt)


def _is_warned(event: Event) -> bool:
    subject, payload = event.subject, event.payload
    if subject == STEP_EXECUTED:
        return bool(payload["status"] == _FAILED and payload["error_code"] != REJECTED)
    return subject in WARNED or (subject == PAUSED and payload.get("actor") == BY.actor)


def _code(event: Event) -> str:
    return event.payload.get("error_code") or event.payload.get("code") or ""
