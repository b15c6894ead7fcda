"""The ceremony agent: folds the commands of a partition into rows of `ceremonies` and sends the effects."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import structlog

from ports.errors import CeremonyError
from ports.log import LARGEST_RECORD_BYTES, Batch, Header, Record, RecordTooLarge
from ports.provenance import DEFINITION
from ports.redaction import Redactor
from streams.envelope import EventRecord, event_record, redacted_envelopes
from streams.folded import Folded
from streams.log_clock import LogClock
from streams.metrics import BatchTally
from streams.topics import CEREMONIES, CORRELATION_ID, DEFINITIONS, EFFECT_ID, EVENTS, prefixed, step_topic
from streams.tracing import Tracing
from streams.waiters import ACCEPTED, FoldResult, ReplyKey
from tables.commands import (
    FOLD_FAILED_ID,
    AnyCommand,
    Noop,
    Origin,
    Pause,
    PutDefinition,
    Restore,
    SetAside,
    Start,
    TimerFired,
    UnreadableRow,
    decode_command,
)
from tables.definition import Definition
from tables.definitions.loader import content_hash, load_pinned
from tables.effects import FOLD, Effect, Event, Refused, StepRequested, encode_request
from tables.errors import Undecodable
from tables.fold.decide import Decision, decide
from tables.fold.refusals import DEFINITION_UNKNOWN
from tables.fold.set_aside import postponed, set_aside
from tables.fold.start import start_refused
from tables.guards import REFUSED
from tables.instance import TERMINAL, Instance, Pauser, encode_instance
from tables.kinds import Kinds
from tables.limits import MAX_WRITTEN_BYTES

log = structlog.get_logger(__name__)

# Note of a decision on a repetition.
DUPLICATE = "duplicate"
ENGINE_ACTOR = "ceremony-engine"
PAUSED_BECAUSE = "the fold failed on a command; see the dead letters"
# Bytes of a value that leave room for key and headers in the largest record.
LARGEST_VALUE_BYTES = LARGEST_RECORD_BYTES - 64 * 1024
# Code of a row that cannot be read, and beginning of the keys under which such rows are known.
ROW_UNREADABLE, UNREADABLE = "row_unreadable", b"\0unreadable/"
FOLD_FAILED = FoldResult("fold_failed", "the engine failed on this command and kept it as a dead letter")


class EffectRecords(NamedTuple):
    """The encoded effects of one command."""

    requests: Sequence[tuple[str, bytes | None, bytes, Sequence[Header]]] = ()
    """Topic, key, value and headers of each; they stay in the engine as they are."""
    events: Sequence[EventRecord] = ()
    prompts: tuple[str, ...] = ()
    """Of the ceremony's definition, which its events may not show."""


@dataclass(slots=True)
class Folding:
    """Results of folding one batch, carried in its note until the batch is visible."""

    rows: dict[bytes, Instance | None] = field(default_factory=dict)
    before: dict[bytes, Instance | None] = field(default_factory=dict)
    """The rows before the batch of those that it changes."""
    replies: dict[ReplyKey, FoldResult] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    """Pinned definitions of the batch's ceremonies by hash, so that each is looked up once."""
    tally: BatchTally = field(default_factory=BatchTally)
    events: list[tuple[EventRecord, tuple[str, ...]]] = field(default_factory=list)
    """Events of the batch in their order, each with the prompts that it may not show."""
    folded: list[Folded] = field(default_factory=list)
    """The commands of ceremonies, in their order."""


class CeremonyAgent:
    """The agent's function: called with the stream of batches."""

    def __init__(
        self,
        kinds: Kinds,
        prefix: str,
        log_clock: LogClock,
        expected: Callable[[AnyCommand], ReplyKey | None],
        redactor: Redactor,
        tracing: Tracing | None = None,
    ) -> None:
        """`expected` gives the key of a command that a client waits for. Events are redacted before they are sent."""
        self._tracing = tracing or Tracing()
        self._redactor = redactor
        self._kinds = kinds
        self._log_clock = log_clock
        self._expected = expected
        self._events = prefixed(prefix, EVENTS)
        self._requests = {kind.name: prefixed(prefix, step_topic(kind.name)) for kind in kinds.values()}
        self._compiled = lru_cache(maxsize=512)(self._compile)

    async def __call__(self, batches: AsyncIterable[Batch]) -> None:
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
            if isinstance(command, UnreadableRow):
                _keep_unreadable(batch, record, command)
            else:
                self._fold_one(batch, folding, record, command)
        self._send_events(batch, folding)
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
        failure = None
        definition = None
        try:
            definition = self._definition(batch, folding, row, command)
            decision = decide(row, command, origin_of(record), definition, self._kinds)
            records = self._records(record, decision, definition)
        except MemoryError:
            raise
        except Exception:
            log.exception("fold_failed", instance=command.instance_id, offset=record.offset)
            failure = FOLD_FAILED
            decision, records = self._fold_failed(batch, folding, record, row, command)
        self._apply(batch, folding, key, row, decision)
        judged = decision.evaluations, decision.unjudged
        folding.folded.append(Folded(row, decision.row, definition, decision.effects, *judged, command, record))
        for reason in decision.unjudged.values():
            folding.tally.unjudged["refused" if reason.startswith(REFUSED) else "failed"] += 1
        if isinstance(command, SetAside) and decision.note != DUPLICATE:
            batch.dead_letter(record, command.code, command.message)
        if decision.note == DEFINITION_UNKNOWN and row is not None:
            _keep_unread(batch, record, command)
        _send(batch, folding, records)
        refusal = _count(folding.tally, decision.effects)
        if command.command_id and (expected := self._expected(command)) is not None:
            folding.replies[expected] = failure or refusal or _accepted(command, decision)

    def _apply(self, batch: Batch, folding: Folding, key: bytes, row: Instance | None, decision: Decision) -> None:
        if decision.row is not row:
            batch.put(CEREMONIES, key, decision.row)
            folding.rows[key] = decision.row
            folding.before.setdefault(key, row)
        elif decision.note:
            folding.tally.unchanged[decision.note] += 1

    def _fold_failed(
        self, batch: Batch, folding: Folding, record: Record, row: Instance | None, command: AnyCommand
    ) -> tuple[Decision, EffectRecords]:
        """Handle a command that cannot be folded, or whose effects or row cannot be written (specification 18.11).

        The command becomes a dead letter and its ceremony is paused; a start is refused. Where pausing fails too, the
        row is paused without the fold, so that no timer makes a dead letter each second.
        """
        batch.dead_letter(record, FOLD_FAILED.code, traceback.format_exc(limit=20))
        try:
            decision = self._paused(batch, folding, record, row, command)
            return decision, self._records(record, decision, None)
        except MemoryError:
            raise
        except Exception:
            log.exception("pause_failed", instance=command.instance_id, offset=record.offset)
        return Decision(_set_aside(row, record, command), (), FOLD_FAILED.code), EffectRecords()

    def _paused(
        self, batch: Batch, folding: Folding, record: Record, row: Instance | None, command: AnyCommand
    ) -> Decision:
        origin = origin_of(record)
        if row is None:
            if not isinstance(command, Start):
                return Decision(None, (), FOLD_FAILED.code)
            event = start_refused(command, origin, origin.timestamp, FOLD_FAILED.code, FOLD_FAILED.message)
            return Decision(None, (event,), FOLD_FAILED.code)
        pause = Pause(
            instance_id=command.instance_id,
            command_id=f"{FOLD_FAILED_ID}{record.partition}/{record.offset}",
            actor=ENGINE_ACTOR,
            reason=PAUSED_BECAUSE,
            by_engine=True,
        )
        decision = decide(row, pause, origin, self._definition(batch, folding, row, pause), self._kinds)
        return Decision(_set_aside(decision.row, record, command), decision.effects, FOLD_FAILED.code)

    def _definition(
        self, batch: Batch, folding: Folding, row: Instance | None, command: AnyCommand
    ) -> Definition | None:
        if isinstance(command, Restore):
            digest = str(command.instance.get("definition_hash", ""))
        elif row is not None:
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
        self._redactor.learn(definition.prompts)
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

    def _records(self, record: Record, decision: Decision, definition: Definition | None) -> EffectRecords:
        """Encode all effects before the first is sent. Raises whatever makes one of them, or the row, unwritable."""
        requests: list[tuple[str, bytes | None, bytes, Sequence[Header]]] = []
        events: list[EventRecord] = []
        beside = self._provenance(decision.row, definition) if decision.effects else ()
        for ordinal, effect in enumerate(decision.effects):
            if isinstance(effect, Event):
                event = event_record(effect, record.offset, ordinal, FOLD, beside)
                events.append(event)
                value = event[1]
            elif isinstance(effect, StepRequested):
                value = encode_request(effect)
                headers = self._request_headers(effect, decision.row)
                requests.append((self._requests[effect.kind], record.key, value, headers))
            else:
                continue
            if len(value) > LARGEST_VALUE_BYTES:
                raise RecordTooLarge(f"an effect has {len(value)} bytes, at most {LARGEST_VALUE_BYTES} are written")
        row = decision.row
        if row is not None and row.size > MAX_WRITTEN_BYTES:  # only a row of an older release, or a forged one
            size = len(encode_instance(row))
            if size > LARGEST_VALUE_BYTES:
                raise RecordTooLarge(f"the row has {size} bytes, at most {LARGEST_VALUE_BYTES} are written")
        return EffectRecords(requests, events, () if definition is None else definition.prompts)

    def _send_events(self, batch: Batch, folding: Folding) -> None:
        """Send the events of the batch, redacted: those with the same prompts are searched together."""
        values = [value for (_, value, _), _ in folding.events]
        places: dict[tuple[str, ...], list[int]] = {}
        for place, (_, prompts) in enumerate(folding.events):
            places.setdefault(prompts, []).append(place)
        for prompts, same in places.items():
            clean = redacted_envelopes([values[place] for place in same], self._redactor.of(prompts))
            for place, value in zip(same, clean, strict=True):
                values[place] = value
        for ((key, _, headers), _), value in zip(folding.events, values, strict=True):
            batch.send(self._events, key, value, headers)
        folding.events.clear()

    def _provenance(self, row: Instance | None, definition: Definition | None) -> tuple[Header, ...]:
        """Return the headers of events; those of a start that was refused have no row and belong to no trace."""
        if row is not None:
            return self._tracing.headers(row)
        return () if definition is None else ((DEFINITION, definition.name.encode()),)

    def _request_headers(self, request: StepRequested, row: Instance | None) -> tuple[Header, ...]:
        beside = () if row is None else self._tracing.request_headers(row, request.step_id, request.attempt)
        return ((EFFECT_ID, request.id.encode()), (CORRELATION_ID, request.correlation_id.encode()), *beside)


def _send(batch: Batch, folding: Folding, records: EffectRecords) -> None:
    """Send the requests of a command; its events wait for those of the whole batch."""
    for topic, key, value, headers in records.requests:
        batch.send(topic, key, value, headers)
    folding.events += [(event, records.prompts) for event in records.events]


def _count(tally: BatchTally, effects: Iterable[Effect]) -> FoldResult | None:
    """Count the effects of a command; return the refusal among them."""
    refusal = None
    for effect in effects:
        if isinstance(effect, Event):
            tally.events[effect.subject] += 1
        elif isinstance(effect, Refused):
            refusal = FoldResult(effect.code, effect.message)
    return refusal


def _accepted(command: AnyCommand, decision: Decision) -> FoldResult:
    """Return the result of a command that was not refused; a start of a ceremony that has ended says so."""
    row = decision.row
    if isinstance(command, Start) and decision.note == DUPLICATE and row is not None and row.status in TERMINAL:
        return FoldResult(message=f"{row.instance_id} is there already: {row.status}")
    return ACCEPTED


def _set_aside(row: Instance | None, record: Record, command: AnyCommand) -> Instance | None:
    """Return the row of a ceremony whose command failed: PAUSED, and a timer that failed fires later."""
    if row is None:
        return None
    row = set_aside(row, record.timestamp, Pauser(ENGINE_ACTOR, reason=PAUSED_BECAUSE))
    return postponed(row, command.timer_id, record.timestamp) if isinstance(command, TimerFired) else row


def _keep_unreadable(batch: Batch, record: Record, command: UnreadableRow) -> None:
    """Make a dead letter of a row that cannot be read, once for its bytes: it is reported at each take-over.

    The row stays in the changelog, for its removal would remove the ceremony from the read models too. That it was
    reported is kept among the definitions, under a key that no hash has.
    """
    key = UNREADABLE + command.digest.encode()
    if batch.get(DEFINITIONS, key) is None:
        batch.put(DEFINITIONS, key, "")
        batch.dead_letter(record, ROW_UNREADABLE, command.message)


def _keep_unread(batch: Batch, record: Record, command: AnyCommand) -> None:
    """Keep a command of a ceremony whose pinned definition cannot be read, for a replay by a release that reads it.

    A command of a client was answered, and a timer fires again.
    """
    if not command.expects_answer and not isinstance(command, TimerFired):
        batch.dead_letter(record, DEFINITION_UNKNOWN, "this release cannot read the definition pinned by the ceremony")


def origin_of(record: Record) -> Origin:
    return Origin(record.partition, record.offset, record.timestamp)


def applied_rows(note: Any) -> Folding:
    """Return the note of a batch of the ceremony agent; an empty one when there is none."""
    return note if isinstance(note, Folding) else Folding()
