"""Dead letters for operators: shows one with its original, and replays the original, once per request id.

A replay sends the original back to its topic, and writes two entries to the topic `audit`: the intention before, the
completion after. If a replay was interrupted between the two, its record is searched for in the target partition by the
header that names the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import structlog

from bridge.nats import metrics
from bridge.nats.response_messages import Foreign, Malformed, to_command
from bridge.nats.streams import AGENT_RESPONSES
from ports.clock import Clock
from ports.errors import CeremonyError
from ports.log import Header, Log, LogUnavailable, Record
from streams import topics
from streams.api import Unavailable
from streams.dead_letters import DeadLetterRecord, dead_letter_of, placed_letter
from streams.letter_index import LetterIndex
from streams.turns import Turns
from tables.commands import encode_command

log = structlog.get_logger(__name__)

# Reads the message of AGENT_RESPONSES with a sequence; None if the stream no longer has it. Raises Unavailable.
ReadMessage = Callable[[int], Awaitable[bytes | None]]
FROM_LETTER, FROM_ORIGIN, GONE = "dead_letter", "origin", "gone"


class DeadLetterUnknown(CeremonyError):
    """There is no dead letter with this origin."""


class NotReplayable(CeremonyError):
    """The original cannot be replayed."""


class LetterOrigin(NamedTuple):
    """Position of the original: topic or stream, partition (0 for a stream), offset or sequence."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class AuditEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of a record of `audit`, keyed by the dead letter's origin."""

    operation: str
    """replay_intended or replay_done."""
    actor: str
    reason: str
    request_id: str
    topic: str
    """Target topic of the original."""
    partition: int
    offset: int
    """Intention: the partition's end at that time; the sent record is searched from there. Completion: its offset."""
    format: int = 1


class Replay(NamedTuple):
    """One completed replay."""

    at: int
    """Milliseconds, time of the audit entry."""
    entry: AuditEntry

    @property
    def sent_to(self) -> str:
        return f"{self.entry.topic}/{self.entry.partition}/{self.entry.offset}"


@dataclass(frozen=True, slots=True)
class DeadLetterDetails:
    """A dead letter with its original and its replays."""

    letter: DeadLetterRecord
    body: bytes
    body_from: str
    """dead_letter, origin or gone."""
    replays: tuple[Replay, ...]


class ReplayTarget(NamedTuple):
    """The record to send, and its partition."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: tuple[Header, ...]


_decode_entry = msgspec.json.Decoder(AuditEntry).decode
_encode = msgspec.json.Encoder().encode
INTENDED, DONE = "replay_intended", "replay_done"


class DeadLetters:
    """Reads and writes the topics `deadletters` and `audit`; any worker may, because neither has an owner."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        *,
        prefix: str,
        partitions: int,
        read_message: ReadMessage,
        index: LetterIndex | None = None,
    ) -> None:
        """`index` is that of the reads, if they share it."""
        self._log = log
        self._clock = clock
        self._partitions = partitions
        self._read_message = read_message
        self._letters = topics.prefixed(prefix, topics.DEADLETTERS)
        self._index = index or LetterIndex(log, Turns(clock), self._letters)
        self._audit = topics.prefixed(prefix, topics.AUDIT)
        self._commands = topics.prefixed(prefix, topics.COMMANDS)
        steps = (topics.prefixed(prefix, topics.step_topic(kind)) for kind in topics.STEP_KINDS)
        self._targets = frozenset((self._commands, *steps))
        self._replay_lock = asyncio.Lock()

    async def show(self, origin: LetterOrigin) -> DeadLetterDetails:
        """The newest dead letter with this origin. Raises DeadLetterUnknown, Unavailable."""
        try:
            letter = await self._letter(origin)
            body, body_from = await self._body(letter)
            done = [replay for replay in await self._entries(origin) if replay.entry.operation == DONE]
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error
        return DeadLetterDetails(letter, body, body_from, tuple(done))

    async def replay(self, origin: LetterOrigin, actor: str, reason: str, request_id: str) -> tuple[Replay, bool]:
        """Send the original back; the second result is True when an earlier call with this request id did so.

        Raises DeadLetterUnknown, NotReplayable, Unavailable, RecordTooLarge.
        """
        try:
            async with self._replay_lock:
                return await self._replay(origin, actor, reason, request_id)
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached; repeating the call is safe") from error

    async def _replay(self, origin: LetterOrigin, actor: str, reason: str, request_id: str) -> tuple[Replay, bool]:
        letter = await self._letter(origin)
        earlier = [one for one in await self._entries(origin) if one.entry.request_id == request_id]
        for one in earlier:
            if one.entry.operation == DONE:
                return one, True
        for one in earlier:
            offset = await self._sent_offset(origin, one.entry)
            if offset is not None:
                done = msgspec.structs.replace(one.entry, operation=DONE, offset=offset)
                return await self._complete(origin, done), True
        target = await self._target(letter)
        (_, end) = (await self._log.ends(target.topic))[target.partition]
        entry = AuditEntry(INTENDED, actor, reason, request_id, target.topic, target.partition, end)
        await self._write_entry(origin, entry)
        marks = ((topics.REPLAY, request_id.encode()), (topics.REPLAY_OF, str(origin).encode()))
        headers = (*target.headers, *marks)
        position = await self._log.append(target.topic, target.partition, target.key, target.value, headers)
        metrics.REPLAYED.labels(letter.topic).inc()
        done = msgspec.structs.replace(entry, operation=DONE, offset=position.offset)
        return await self._complete(origin, done), False

    async def _complete(self, origin: LetterOrigin, entry: AuditEntry) -> Replay:
        replay = Replay(await self._write_entry(origin, entry), entry)
        log.warning(
            "dead_letter_replayed",
            origin=str(origin),
            sent_to=replay.sent_to,
            actor=entry.actor,
            reason=entry.reason,
            request_id=entry.request_id,
        )
        return replay

    # -- audit

    async def _write_entry(self, origin: LetterOrigin, entry: AuditEntry) -> int:
        partition = origin.partition % self._partitions
        position = await self._log.append(self._audit, partition, str(origin).encode(), _encode(entry))
        return position.timestamp

    async def _entries(self, origin: LetterOrigin) -> list[Replay]:
        """The audit entries of this origin. Undecodable records of the partition become dead letters."""
        key = str(origin).encode()
        found, bad = [], {}
        async for record in self._records(self._audit, origin.partition % self._partitions):
            try:
                entry = self._decoded_entry(record)
            except ValueError as error:
                bad[f"{record.topic}/{record.partition}/{record.offset}"] = record, str(error)
                continue
            if record.key == key:
                found.append(Replay(record.timestamp, entry))
        if bad:
            await self._set_aside(origin.partition % self._partitions, bad)
        return found

    def _decoded_entry(self, record: Record) -> AuditEntry:
        """Raises ValueError for a record that `_write_entry` did not write."""
        try:
            entry = _decode_entry(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no entry of the audit: {error}") from None
        if entry.operation not in (INTENDED, DONE):
            raise ValueError(f"no operation of the audit: {entry.operation[:100]!r}")
        if entry.topic not in self._targets or not 0 <= entry.partition < self._partitions or entry.offset < 0:
            raise ValueError(f"nothing is sent to {entry.topic[:100]!r}/{entry.partition}/{entry.offset}")
        return entry

    async def _set_aside(self, partition: int, bad: dict[str, tuple[Record, str]]) -> None:
        """Write dead letters for undecodable records of `audit`, unless they have one already."""
        await self._index.refresh()
        for origin, (record, message) in bad.items():
            if await self._index.find((record.topic, record.partition, record.offset)) is not None:
                continue
            log.warning("audit_entry_set_aside", origin=origin, reason=message)
            await self._log.append(self._letters, partition, *dead_letter_of(record, "audit_undecodable", message))

    async def _sent_offset(self, origin: LetterOrigin, intended: AuditEntry) -> int | None:
        """Offset of the record that an interrupted replay sent; None if it sent none.

        Other letters may be replayed under the same request id. Records of older releases do not name theirs.
        """
        request_id, letter = intended.request_id.encode(), str(origin).encode()
        async for record in self._records(intended.topic, intended.partition, intended.offset):
            marks = dict(record.headers)
            if marks.get(topics.REPLAY) == request_id and marks.get(topics.REPLAY_OF, letter) == letter:
                return record.offset
        return None

    # -- the letter and its original

    async def _letter(self, origin: LetterOrigin) -> DeadLetterRecord:
        await self._index.refresh()
        place = await self._index.find((origin.topic, origin.partition, origin.offset))
        records = [] if place is None else await self._index.records([place])
        if not records:
            raise DeadLetterUnknown("dead_letter_unknown", f"there is no dead letter of {str(origin)[:300]!r}")
        return placed_letter(records[0])

    async def _body(self, letter: DeadLetterRecord) -> tuple[bytes, str]:
        if letter.value is not None:
            return letter.value, FROM_LETTER
        body = await self._original(letter)
        return (b"", GONE) if body is None else (body, FROM_ORIGIN)

    async def _original(self, letter: DeadLetterRecord) -> bytes | None:
        """Read the original value of a dead letter that only refers to it."""
        if letter.topic == AGENT_RESPONSES:
            return await self._read_message(letter.offset)
        if letter.topic not in self._targets:
            return None
        async for record in self._records(letter.topic, letter.partition, letter.offset, letter.offset + 1):
            if record.offset == letter.offset:
                return record.value
        return None

    async def _target(self, letter: DeadLetterRecord) -> ReplayTarget:
        """The record and partition of a replay. Raises NotReplayable."""
        body, body_from = await self._body(letter)
        if body_from == GONE:
            text = f"the original of {letter.origin} is kept nowhere any more; only who made it can make it again"
            raise NotReplayable("body_gone", text)
        if letter.topic == AGENT_RESPONSES:
            return self._as_command(letter, body)
        if letter.topic not in self._targets or not 0 <= letter.partition < self._partitions:
            places = f"{AGENT_RESPONSES}, {', '.join(sorted(self._targets))}"
            raise NotReplayable("not_replayable", f"{letter.origin} is none of the places to send back to: {places}")
        headers = tuple(header for header in letter.headers if header[0] not in (topics.REPLAY, topics.REPLAY_OF))
        return ReplayTarget(letter.topic, letter.partition, letter.key, body, headers)

    def _as_command(self, letter: DeadLetterRecord, body: bytes) -> ReplayTarget:
        """Turn a NATS message into a command, as its first delivery would have."""
        subject = dict(letter.headers).get(topics.SUBJECT, b"").decode(errors="replace")
        verdict = to_command(subject, body, AGENT_RESPONSES, letter.offset)
        if isinstance(verdict, Malformed):
            raise NotReplayable("still_malformed", f"{letter.origin}: {verdict.code}: {verdict.message}")
        if isinstance(verdict, Foreign):
            text = f"{letter.origin} belongs to no ceremony ({verdict.reason}); there is nothing to send"
            raise NotReplayable("not_ours", text)
        key = verdict.instance_id.encode()
        correlation = verdict.correlation_id.encode()
        headers = ((topics.CORRELATION_ID, correlation),) if correlation else ()
        partition = self._log.partition_of(key, self._partitions)
        return ReplayTarget(self._commands, partition, key, encode_command(verdict), headers)

    async def _records(
        self, topic: str, partition: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[Record]:
        """The retained records of a partition from `start` to `end`, or to its present end."""
        begin, last = (await self._log.ends(topic))[partition]
        async for records in self._log.read(
            topic, partition, max(start, begin), last if end is None else min(end, last)
        ):
            for record in records:
                yield record
            await self._clock.sleep(0)  # let other tasks run
