"""The ceremony agent: folds the commands of a partition into rows of `ceremonies` and sends the effects."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import structlog

from ports.errors import CeremonyError
from ports.log import Batch, Header, Record
from streams.envelope import event_record
from streams.log_clock import LogClock
from streams.metrics import BatchTally
from streams.topics import CEREMONIES, CORRELATION_ID, DEFINITIONS, EFFECT_ID, EVENTS, prefixed, step_topic
from streams.waiters import ACCEPTED, FoldResult, ReplyKey
from tables.commands import (
    FOLD_FAILED_ID,
    AnyCommand,
    Noop,
    Origin,
    Pause,
    PutDefinition,
    Start,
    TimerFired,
    decode_command,
)
from tables.definition import Definition
from tables.definitions.loader import content_hash, load_pinned
from tables.effects import FOLD, Event, Refused, StepRequested, encode_request
from tables.errors import Undecodable
from tables.fold.decide import Decision, decide
from tables.fold.refusals import DEFINITION_UNKNOWN
from tables.fold.step_life import PUBLISH_COMPLETED, STEP_EXECUTED
from tables.guards import REFUSED
from tables.instance import Instance, StepStatus
from tables.kinds import Kinds

log = structlog.get_logger(__name__)

# Events that are also written to the program's log, like a step that failed for good.
NOTABLE = frozenset(
    {
        "ceremony.step.retrying",
        "ceremony.step.ordered",
        "ceremony.failed",
        "ceremony.timed_out",
        "ceremony.cancelled",
        "ceremony.paused",
        "ceremony.resumed",
        "ceremony.start.refused",
    }
)
_FAILED = StepStatus.FAILED.value
ENGINE_ACTOR = "ceremony-engine"
FOLD_FAILED = FoldResult("fold_failed", "the engine failed on this command and has put it aside; see the dead letters")


@dataclass(slots=True)
class Folding:
    """Results of folding one batch, carried in its note until the batch is visible."""

    rows: dict[bytes, Instance | None] = field(default_factory=dict)
    replies: dict[ReplyKey, FoldResult] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    """Pinned definitions of the batch's ceremonies by hash, so that each is looked up once."""
    tally: BatchTally = field(default_factory=BatchTally)


class CeremonyAgent:
    """The agent's function: called with the stream of batches."""

    def __init__(
        self, kinds: Kinds, prefix: str, log_clock: LogClock, expected: Callable[[AnyCommand], ReplyKey | None]
    ) -> None:
        """`expected` gives the key of a command that a client waits for."""
        self._kinds = kinds
        self._log_clock = log_clock
        self._expected = expected
        self._events = prefixed(prefix, EVENTS)
        self._requests = {kind.name: prefixed(prefix, step_topic(kind.name)) for kind in kinds.values()}
        self._compiled = lru_cache(maxsize=512)(self._compile)

    async def __call__(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            self.fold(batch)

    def fold(self, batch: Batch) -> None:
        """Fold a whole batch. Synchronous, so that no other task runs between a row and its effects."""
        batch.note = folding = Folding()
        record = None
        for record in batch:
            try:
                command = decode_command(record.value)
            except Undecodable as error:
                batch.dead_letter(record, error.code, error.message)
                continue
            self._fold_one(batch, folding, record, command)
        if record is not None:
            self._log_clock.observe(record.timestamp)

    def _fold_one(self, batch: Batch, folding: Folding, record: Record, command: AnyCommand) -> None:
        folding.tally.commands[type(command).__name__] += 1
        if isinstance(command, Noop):
            return
        if isinstance(command, PutDefinition):
            self._put_definition(batch, record, command)
            return
        key = command.instance_id.encode()
        if record.key != key:
            batch.dead_letter(record, "key_mismatch", "the record's key is not the instance id of its command")
            return
        row: Instance | None = batch.get(CEREMONIES, key)
        answer = ACCEPTED
        try:
            definition = self._definition(batch, folding, row, command)
            decision = decide(row, command, origin_of(record), definition, self._kinds)
        except MemoryError:
            raise
        except Exception:
            log.exception("fold_failed", instance=command.instance_id, offset=record.offset)
            answer = FOLD_FAILED
            decision = self._fold_failed(batch, folding, record, row, command)
        self._apply(batch, folding, key, row, decision)
        if decision.unjudged:
            folding.tally.unjudged.update(_log_unjudged(command.instance_id, decision))
        if decision.note == DEFINITION_UNKNOWN and row is not None:
            _set_aside(batch, record, command)
        refusal = self._emit(batch, folding, record, decision)
        if command.command_id and (expected := self._expected(command)) is not None:
            folding.replies[expected] = refusal or answer

    def _apply(self, batch: Batch, folding: Folding, key: bytes, row: Instance | None, decision: Decision) -> None:
        if decision.row is not row:
            batch.put(CEREMONIES, key, decision.row)
            folding.rows[key] = decision.row
        elif decision.note:
            folding.tally.unchanged[decision.note] += 1

    def _fold_failed(
        self, batch: Batch, folding: Folding, record: Record, row: Instance | None, command: AnyCommand
    ) -> Decision:
        """Handle a bug in the fold: pause the ceremony and dead-letter the command (specification 18.11)."""
        batch.dead_letter(record, FOLD_FAILED.code, traceback.format_exc(limit=20))
        pause = Pause(
            instance_id=command.instance_id,
            command_id=f"{FOLD_FAILED_ID}{record.partition}/{record.offset}",
            actor=ENGINE_ACTOR,
            reason="the fold failed on a command; see the dead letters",
            by_engine=True,
        )
        try:
            if row is not None:
                definition = self._definition(batch, folding, row, pause)
                return decide(row, pause, origin_of(record), definition, self._kinds)
        except MemoryError:
            raise
        except Exception:
            log.exception("pause_failed", instance=command.instance_id, offset=record.offset)
        return Decision(row, (), FOLD_FAILED.code)

    def _definition(
        self, batch: Batch, folding: Folding, row: Instance | None, command: AnyCommand
    ) -> Definition | None:
        if row is not None:
            digest = row.definition_hash
        elif isinstance(command, Start):
            digest = command.definition_hash
        else:
            return None
        known = folding.definitions.get(digest)
        if known is None and (text := batch.get(DEFINITIONS, digest.encode())) is not None:
            known = self._compiled(text, digest)
            if known is not None:
                folding.definitions[digest] = known
        return known

    def _compile(self, text: str, digest: str) -> Definition | None:
        try:
            definition = load_pinned(text, digest, self._kinds)
        except CeremonyError as error:
            log.error("pinned_definition_invalid", hash=digest, problems=error.message)
            return None
        if definition.objections:
            problems = [str(problem) for problem in definition.objections[:20]]
            log.warning("pinned_definition_outdated", definition=definition.name, hash=digest, problems=problems)
        return definition

    def _put_definition(self, batch: Batch, record: Record, command: PutDefinition) -> None:
        key = command.hash.encode()
        if batch.get(DEFINITIONS, key) is not None:
            return
        # load_pinned caches by the hash alone, so the text is checked here.
        if content_hash(command.text) != command.hash or self._compiled(command.text, command.hash) is None:
            batch.dead_letter(record, "definition_refused", "the text is no valid definition with this hash")
            return
        batch.put(DEFINITIONS, key, command.text)

    def _count(self, tally: BatchTally, event: Event) -> None:
        subject = event.subject
        tally.events[subject] += 1
        if subject == STEP_EXECUTED:
            status = event.payload["status"]
            tally.steps[status] += 1
            if status == _FAILED:
                _log_event(event)
        elif subject in NOTABLE:
            _log_event(event)
        elif subject == PUBLISH_COMPLETED:
            tally.published[str(event.payload["duplicate"]).lower()] += 1

    def _emit(self, batch: Batch, folding: Folding, record: Record, decision: Decision) -> FoldResult | None:
        refusal = None
        for ordinal, effect in enumerate(decision.effects):
            if isinstance(effect, Event):
                self._count(folding.tally, effect)
                key, value, headers = event_record(effect, record.offset, ordinal, FOLD)
                batch.send(self._events, key, value, headers)
            elif isinstance(effect, StepRequested):
                batch.send(self._requests[effect.kind], record.key, encode_request(effect), _request_headers(effect))
            elif isinstance(effect, Refused):
                refusal = FoldResult(effect.code, effect.message)
            else:
                folding.tally.ended[effect.status] += 1
        return refusal


def _log_event(event: Event) -> None:
    """Log an event that an operator looks for; ordinary events are only counted."""
    payload = event.payload
    log.warning(
        event.subject,
        instance=event.instance_id,
        step=payload.get("step_id"),
        attempt=payload.get("attempt"),
        actor=payload.get("actor"),
        correlation_id=event.correlation_id,
        code=payload.get("error_code") or payload.get("code"),
        reason=payload.get("error_message") or payload.get("message") or payload.get("reason"),
    )


def _log_unjudged(instance_id: str, decision: Decision) -> list[str]:
    """Log each guard that could not be judged (specification 3.6, 24.4); return `refused` or `failed` for each."""
    correlation_id = instance_id if decision.row is None else decision.row.correlation_id
    for guard, reason in decision.unjudged.items():
        log.warning("guard_unjudged", instance=instance_id, guard=guard, reason=reason, correlation_id=correlation_id)
    return ["refused" if reason.startswith(REFUSED) else "failed" for reason in decision.unjudged.values()]


def _set_aside(batch: Batch, record: Record, command: AnyCommand) -> None:
    """Keep a command of a ceremony whose pinned definition cannot be read, for a replay by a release that reads it.

    A command of a client was answered, and a timer fires again.
    """
    if not command.expects_answer and not isinstance(command, TimerFired):
        batch.dead_letter(record, DEFINITION_UNKNOWN, "this release cannot read the definition pinned by the ceremony")


def origin_of(record: Record) -> Origin:
    return Origin(record.partition, record.offset, record.timestamp)


def _request_headers(request: StepRequested) -> tuple[Header, ...]:
    return ((EFFECT_ID, request.id.encode()), (CORRELATION_ID, request.correlation_id.encode()))


def applied_rows(note: Any) -> Folding:
    """Return the note of a batch of the ceremony agent; an empty one when there is none."""
    return note if isinstance(note, Folding) else Folding()
