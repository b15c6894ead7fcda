"""The events bridge: publishes the topic `events` to JetStream, each message once, in order per ceremony.

The log delivers a batch. Its offset is committed after every message is acknowledged, with a note of the effects that
are sent (`progress`). Bridges share the partitions. A bridge that is assigned one skips the effects in the note, and
reads back the ids that its former owner stored later. It sends only while its membership of the group is fresh.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import msgspec
import structlog

from bridge.leaving import leave
from bridge.nats import metrics
from bridge.nats.connection import NatsConnection
from bridge.nats.headers import header_lines
from bridge.nats.progress import PartitionProgress, ids_of_partition
from bridge.nats.publish import JetStreamPublisher, Nack
from bridge.nats.streams import ensure_ceremony_stream, replicas_warning
from bridge.nats.trouble import Trouble
from bridge.nats.window import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, WINDOW, Outgoing, PublishWindow
from ports.clock import Clock
from ports.log import Committed, Follower, Log, LogUnavailable, Record
from ports.provenance import provenance_of
from ports.redaction import Redactor
from streams import topics
from streams.dead_letters import (
    DEADLETTER_SUBJECT,
    DeadLetterRecord,
    dead_letter_event,
    dead_letter_of,
    dead_letter_provenance,
    letter_of,
)
from streams.letter_budget import LetterBudget, Room

BATCH = 2000
STOP_SECONDS = 3.0

# Start of the subject of every event.
SUBJECT_PREFIX = b"ceremony."

log = structlog.get_logger(__name__)


# Key of the trouble before anything could be sent.
OPENING = "opening"


def _any_id(_: str) -> bool:
    return True


class _Object(msgspec.Struct):
    """Any JSON object: its fields are checked and not kept."""


_object = msgspec.json.Decoder(_Object).decode


class EventsBridge:
    """Publishes the topics `events` and `deadletters` to the stream CEREMONY; a dead letter as an announcement."""

    def __init__(
        self,
        log: Log,
        connection: NatsConnection,
        clock: Clock,
        *,
        prefix: str,
        redactor: Redactor,
        window: int = WINDOW,
        batch: int = BATCH,
        letters: LetterBudget | None = None,
        partitions: int | None = None,
    ) -> None:
        """`partitions`: number of partitions of `events`, by which ids of other partitions are told apart."""
        self._log = log
        self._connection = connection
        self._clock = clock
        self._prefix = prefix
        self._redactor = redactor
        self._window = window
        self._batch = batch
        self._letters = letters or LetterBudget(clock)
        self._publisher = JetStreamPublisher(connection)
        metrics.IN_FLIGHT.set_function(lambda: self._publisher.in_flight)
        self._oldest: dict[tuple[str, int], int] = {}
        """Timestamp of the first record in hand, by topic and partition."""
        metrics.LAG_SECONDS.set_function(lambda: self.lag_seconds)
        self._followers: dict[str, Follower] = {}
        self._partitions = partitions
        self._events = topics.prefixed(prefix, topics.EVENTS)
        self._begun_at: dict[tuple[str, int], int] = {}
        """By topic and partition: its committed offset at the assignment."""
        self._refusals = Trouble(clock, "events")
        self._stream_state = "waiting for NATS"
        self.warning = ""
        """A shortcoming of the stream that does not end readiness, with its remedy; empty without one."""
        self._opened = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._progress: dict[tuple[str, int], PartitionProgress] = {}
        """By topic and partition, since its assignment to this bridge."""

    @property
    def state(self) -> str:
        """For readiness: `ok`, or a text with the trouble."""
        if not self._connection.is_connected:
            return self._connection.state
        return self._stream_state if self._refusals.state == "ok" else self._refusals.state

    @property
    def places(self) -> Mapping[str, Mapping[int, int]]:
        """Offset of the next record to be published, by topic and assigned partition."""
        return {topic: follower.places for topic, follower in self._followers.items()}

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest record that is being published; 0 while none is."""
        oldest = min(self._oldest.values(), default=None)
        return 0.0 if oldest is None else max(0.0, self._clock.wall() - oldest / 1000)

    async def start(self) -> None:
        """Begin to follow the topics. NATS need not run yet; events wait in the log."""
        self._opening = self._clock.spawn(self._open(), name="nats-out-open")
        for topic, handle in ((topics.EVENTS, self.publish_events), (topics.DEADLETTERS, self.announce)):
            name = topics.prefixed(self._prefix, topic)
            group = topics.prefixed(self._prefix, f"nats-out.{topic}")
            self._followers[name] = await self._log.follow(
                group, name, handle, batch=self._batch, taken=partial(self._taken, name)
            )

    async def _taken(self, topic: str, committed: Committed) -> None:
        self._refusals.end((topic, committed.partition))
        self._begun_at[topic, committed.partition] = committed.offset or 0
        is_mine = self._ids_of(committed.partition) if topic == self._events else _any_id
        self._progress[topic, committed.partition] = PartitionProgress.from_committed(committed, is_mine)

    def _ids_of(self, partition: int) -> Callable[[str], bool]:
        if (partitions := self._partitions) is None:
            return _any_id
        return ids_of_partition(lambda key: self._log.partition_of(key, partitions), partition)

    async def stop(self) -> None:
        """Finish the current batches if NATS answers, else drop them uncommitted; then leave the groups."""
        if self._opening is not None:
            self._opening.cancel()
        try:
            await leave(self._followers.values(), self._sending, self._clock, STOP_SECONDS)
        finally:
            self._followers.clear()

    async def publish_events(self, records: Sequence[Record]) -> str:
        """Publish a batch of `events` of one partition; returns the note to commit."""
        progress = self._progress[records[0].topic, records[0].partition]
        marks = progress.marks.copy()
        messages: list[tuple[bytes, Outgoing]] = []
        for record in records:
            headers = dict(record.headers)
            message = outgoing(record, headers)
            if message is None:  # checked before the marks: its headers may be those of a sent event
                await self._set_aside(
                    record, Nack("event_undecodable", "no subject of ours, no id or no value", final=True)
                )
            elif marks.already_sent(headers):
                metrics.SKIPPED.inc()
            else:
                messages.append((record.key or message.id.encode(), message))
        await self._publish(records, messages)
        progress.marks = marks
        return marks.note

    async def announce(self, records: Sequence[Record]) -> None:
        """Publish `ceremony.deadletter` for each record of `deadletters`."""
        messages: list[tuple[bytes, Outgoing]] = []
        for record in records:
            letter = letter_of(record)
            metrics.DEAD_LETTERS.labels(letter.code).inc()
            message = announcement(letter, record)
            messages.append((message.id.encode(), message))
        await self._publish(records, messages)

    async def _publish(self, records: Sequence[Record], messages: Sequence[tuple[bytes, Outgoing]]) -> None:
        # In its own task, which `stop` can cancel while NATS is away: the follower is cancelled, and commits nothing.
        place = records[0].topic, records[0].partition
        self._oldest[place] = records[0].timestamp
        task = self._clock.spawn(self._send(records[0], messages), name="nats-out-send")
        self._sending.add(task)
        try:
            await task
        finally:
            task.cancel()
            self._sending.discard(task)
            self._oldest.pop(place, None)

    async def _send(self, first: Record, messages: Sequence[tuple[bytes, Outgoing]]) -> None:
        await self._opened.wait()
        progress = self._progress[first.topic, first.partition]
        progress.begin_batch(first)
        window = PublishWindow(
            messages,
            self._connection,
            self._publisher,
            self._clock,
            self._rejected,
            self._window,
            progress=progress,
            fresh=partial(self._fresh, first.topic),
            redactor=self._redactor,
            refused=partial(self._refuses, first),
        )
        await window.run()
        self._refusals.end((first.topic, first.partition))

    async def _refuses(self, first: Record, reason: str, left: int) -> None:
        """Note that NATS does not take the events of a partition, with the number of all that wait in the log."""
        waiting = left
        with contextlib.suppress(LogUnavailable):
            waiting = max(left, (await self._log.ends(first.topic))[first.partition][1] - first.offset)
        self._refusals.note((first.topic, first.partition), reason, waiting)

    def _fresh(self, topic: str) -> bool:
        """Return whether the assigned partitions of the topic certainly still belong to this bridge."""
        follower = self._followers.get(topic)
        return follower is not None and follower.fresh

    async def _rejected(self, message: Outgoing, nack: Nack) -> None:
        metrics.REJECTED.inc()
        if message.subject == DEADLETTER_SUBJECT:
            # A dead letter for an announcement would need an announcement itself. The dead letter is in the log.
            log.error("deadletter_not_announced", id=message.id, code=nack.code, reason=nack.message)
            return
        await self._set_aside(message.record, nack)

    async def _set_aside(self, record: Record, nack: Nack) -> None:
        log.error("event_set_aside", offset=record.offset, partition=record.partition, code=nack.code)
        room = self._letters.take(nack.code, len(record.value or b""))
        if room is Room.NONE:
            return
        letter = dead_letter_of(record, nack.code, nack.message, refer=room is Room.REFERENCE)
        # All go to one partition, because dead letters are few.
        await self._log.append(topics.prefixed(self._prefix, topics.DEADLETTERS), 0, *letter)

    async def _open(self) -> None:
        """Make the stream, because publishing without one is refused; repeat until it is as it should be."""
        pause = FIRST_PAUSE_SECONDS
        while (state := await ensure_ceremony_stream(self._connection)) != "ok":
            self._refusals.note(OPENING, state, await self._waiting())
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._stream_state = "ok"
        self.warning = await replicas_warning(self._connection)
        if self.warning:
            log.warning("stream_replicas_differ", reason=self.warning)
        self._refusals.end(OPENING)
        self._opened.set()

    async def _waiting(self) -> int:
        """The records in the assigned partitions of which none was sent yet."""
        waiting = 0
        with contextlib.suppress(LogUnavailable):
            for topic in list(self._followers):
                for partition, (start, end) in enumerate(await self._log.ends(topic)):
                    if (topic, partition) in self._begun_at:
                        waiting += end - max(start, self._begun_at[topic, partition])
        return waiting


def is_object(value: bytes) -> bool:
    """Return whether the bytes are one JSON object in UTF-8."""
    try:
        value.decode()  # the decoder does not check the strings that it skips
        _object(value)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return False
    return True


def outgoing(record: Record, headers: Mapping[str, bytes]) -> Outgoing | None:
    """The message for a record of `events` with these headers; None when the record holds no event."""
    subject, effect_id = headers.get(topics.SUBJECT), headers.get(topics.EFFECT_ID)
    if not subject or not effect_id or not record.value:
        return None
    if not is_object(record.value):  # subscribers could not read it
        return None
    try:
        name = _event_subject(subject)
        if not name:
            return None
        beside = header_lines(provenance_of((record.key or b"").decode(), headers))
        return Outgoing(effect_id.decode(), name, record.value, record, beside)
    except UnicodeDecodeError:
        return None


def announcement(letter: DeadLetterRecord, record: Record) -> Outgoing:
    """The message that announces the dead letter in a record; it names the ceremony where there is one."""
    key, data = dead_letter_event(letter)
    return Outgoing(key, DEADLETTER_SUBJECT, data, record, header_lines(dead_letter_provenance(letter)))


@lru_cache(maxsize=256)
def _event_subject(subject: bytes) -> str:
    """The decoded subject of an event, else empty: no stream takes other subjects, so publishing would never end."""
    return subject.decode() if subject.startswith(SUBJECT_PREFIX) else ""
