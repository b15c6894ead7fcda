"""The events bridge: publishes the topic `events` to JetStream, each message once, in order per ceremony.

A batch is handed over by the log and its offset is committed after `publish_batch` has returned, which is after every
acknowledgement. After a crash a batch is sent again; `Nats-Msg-Id` lets JetStream drop what it has already, within
the stream's duplicate window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import nats.errors
import structlog

from bridge import nats_metrics as metrics
from bridge.nats_connection import NatsConnection
from bridge.nats_publish import MESSAGE_ID, Answer, JetStreamPublisher, Nack, refusal
from bridge.nats_streams import ensure_ceremony_stream
from steps.ports import Clock
from streams import topics
from streams.codecs import DEADLETTER_SUBJECT, dead_letter_event, dead_letter_record, decode_dead_letter
from streams.transport.contract import Follower, Log, Record

WINDOW = 512
"""Messages in flight per partition."""
BATCH = 2000
ACK_SECONDS = 5.0
"""A window that made no progress for so long is sent again."""
LOOK_SECONDS = 0.5
STOP_SECONDS = 3.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Outgoing:
    """One message to be sent."""

    id: str
    """Effect id, or the key of what comes from no fold: `Nats-Msg-Id`."""
    subject: str
    data: bytes
    record: Record


@dataclass(slots=True)
class Lane:
    """The messages of one ceremony: only the first is ever in flight, so that their order holds."""

    queue: deque[Outgoing] = field(default_factory=deque)
    token: str = ""
    """Of the first message while it is in flight."""


Reject = Callable[[Outgoing, Nack], Awaitable[None]]


class Window:
    """Publishes one batch: many ceremonies in flight, one message of each."""

    def __init__(
        self,
        messages: Sequence[tuple[bytes, Outgoing]],
        connection: NatsConnection,
        publisher: JetStreamPublisher,
        clock: Clock,
        reject: Reject,
        limit: int = WINDOW,
    ) -> None:
        """`messages`: (key whose order holds, message)."""
        self._connection = connection
        self._publisher = publisher
        self._clock = clock
        self._reject = reject
        self._limit = limit
        self._wake = asyncio.Event()
        lanes: dict[bytes, Lane] = {}
        for key, message in messages:
            lanes.setdefault(key, Lane()).queue.append(message)
        self._ready = deque(lanes.values())
        self._flying: dict[int, Lane] = {}
        self._refused: list[tuple[Lane, Nack]] = []
        self._trouble: Nack | None = None
        self._left = len(messages)
        self._pause = FIRST_PAUSE_SECONDS

    async def run(self) -> None:
        """Returns when every message is acknowledged or set aside."""
        try:
            while self._left:
                await self._send_ready()
                await self._settle()
        finally:
            self._recall()

    async def _send_ready(self) -> None:
        client = await self._publisher.client()
        self._generation = self._connection.generation
        while self._ready and len(self._flying) < self._limit:
            lane = self._ready.popleft()
            message = lane.queue[0]
            headers = {MESSAGE_ID: message.id}
            if refused := refusal(client, message.subject, message.data, headers):
                self._refused.append((lane, refused))
                self._wake.set()
                continue
            self._flying[id(lane)] = lane
            try:
                lane.token = await self._publisher.send(
                    client, message.subject, message.data, headers, partial(self._answered, lane)
                )
            except (nats.errors.Error, OSError):
                self._trouble = Nack("stream_unavailable", "the connection broke", final=False)
                self._wake.set()
                return

    def _answered(self, lane: Lane, answer: Answer) -> None:
        self._flying.pop(id(lane), None)
        self._wake.set()
        if isinstance(answer, Nack):
            if answer.final:
                self._refused.append((lane, answer))
            else:
                self._ready.append(lane)
                self._trouble = answer
            return
        metrics.PUBLISHED.inc()
        if answer.duplicate:
            metrics.DUPLICATES.inc()
        self._pause = FIRST_PAUSE_SECONDS
        self._next(lane)

    def _next(self, lane: Lane) -> None:
        lane.queue.popleft()
        self._left -= 1
        if lane.queue:
            self._ready.append(lane)

    async def _settle(self) -> None:
        """Wait until something happened, and deal with what went wrong."""
        if self._left and not self._refused and not self._trouble:
            await self._wait()
        self._wake.clear()
        for lane, refused in self._refused:
            await self._reject(lane.queue[0], refused)
            self._next(lane)
        self._refused.clear()
        if self._trouble is not None:
            await self._back_off(self._trouble)

    async def _wait(self) -> None:
        deadline = self._clock.monotonic() + ACK_SECONDS
        while not self._wake.is_set():
            try:
                async with self._clock.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                if self._connection.generation != self._generation:
                    self._trouble = Nack("stream_unavailable", "the connection was renewed", final=False)
                    return
                if self._clock.monotonic() >= deadline:
                    self._trouble = Nack("stream_unavailable", "no acknowledgement came", final=False)
                    return

    async def _back_off(self, trouble: Nack) -> None:
        # What is in flight may be stored or lost; sent again under the same id it is stored once.
        self._trouble = None
        self._recall()
        log.warning("nats_publish_waits", code=trouble.code, reason=trouble.message, left=self._left)
        await self._clock.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        await ensure_ceremony_stream(await self._connection.jetstream())

    def _recall(self) -> None:
        """Forget what is in flight; its lanes are to be sent again."""
        metrics.RESENT.inc(len(self._flying))
        for lane in self._flying.values():
            self._publisher.forget(lane.token)
            self._ready.append(lane)
        self._flying.clear()


class EventsBridge:
    """Publishes the topics `events` and `deadletters` (each dead letter is announced) to the stream CEREMONY."""

    def __init__(
        self,
        log: Log,
        connection: NatsConnection,
        clock: Clock,
        *,
        prefix: str,
        window: int = WINDOW,
        batch: int = BATCH,
    ) -> None:
        self._log = log
        self._connection = connection
        self._clock = clock
        self._prefix = prefix
        self._window = window
        self._batch = batch
        self._publisher = JetStreamPublisher(connection)
        self._followers: list[Follower] = []
        self._stream_state = "waiting for NATS"
        self._opened = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> str:
        """For readiness: `ok`, or what is wrong."""
        return self._stream_state if self._connection.is_connected else self._connection.state

    async def start(self) -> None:
        """Begin to follow. NATS need not be there; events wait in the log until it is."""
        self._opening = self._clock.spawn(self._open(), name="nats-out-open")
        for topic, handle in ((topics.EVENTS, self.publish_events), (topics.DEADLETTERS, self.announce)):
            name = topics.prefixed(self._prefix, topic)
            group = topics.prefixed(self._prefix, f"nats-out.{topic}")
            self._followers.append(await self._log.follow(group, name, handle, batch=self._batch))

    async def stop(self) -> None:
        """Finish the batches in hand where NATS answers, else give them up uncommitted; leave the groups."""
        if self._opening is not None:
            self._opening.cancel()
        leaving = self._clock.spawn(self._leave(), name="nats-out-leave")
        try:
            async with self._clock.timeout(STOP_SECONDS):
                await asyncio.shield(leaving)
        except TimeoutError:
            for task in self._sending:
                task.cancel()
            await leaving

    async def _leave(self) -> None:
        for follower in self._followers:
            await follower.stop()
        self._followers.clear()

    async def publish_events(self, records: Sequence[Record]) -> None:
        """Publish a batch of `events` of one partition."""
        messages: list[tuple[bytes, Outgoing]] = []
        for record in records:
            message = outgoing(record)
            if message is None:
                await self._set_aside(
                    record, Nack("event_undecodable", "a record without subject, id or value", final=True)
                )
            else:
                messages.append((record.key or message.id.encode(), message))
        await self._publish(messages)

    async def announce(self, records: Sequence[Record]) -> None:
        """Publish `ceremony.deadletter` for each record of `deadletters`."""
        messages: list[tuple[bytes, Outgoing]] = []
        for record in records:
            letter = decode_dead_letter(record.key, record.value, record.headers, record.timestamp)
            key, data = dead_letter_event(letter)
            messages.append((key.encode(), Outgoing(key, DEADLETTER_SUBJECT, data, record)))
        await self._publish(messages)

    async def _publish(self, messages: Sequence[tuple[bytes, Outgoing]]) -> None:
        # A task of its own, which `stop` can end while NATS is away: the follower is cancelled, and commits nothing.
        task = self._clock.spawn(self._send(messages), name="nats-out-send")
        self._sending.add(task)
        try:
            await task
        finally:
            task.cancel()
            self._sending.discard(task)

    async def _send(self, messages: Sequence[tuple[bytes, Outgoing]]) -> None:
        await self._opened.wait()
        await Window(messages, self._connection, self._publisher, self._clock, self._rejected, self._window).run()

    async def _rejected(self, message: Outgoing, nack: Nack) -> None:
        metrics.REJECTED.inc()
        if message.subject == DEADLETTER_SUBJECT:
            # Announcing the announcement would go on for ever; the dead letter itself is in the log.
            log.error("deadletter_not_announced", id=message.id, code=nack.code, reason=nack.message)
            return
        await self._set_aside(message.record, nack)

    async def _set_aside(self, record: Record, nack: Nack) -> None:
        log.error("event_set_aside", offset=record.offset, partition=record.partition, code=nack.code)
        key, value, headers = dead_letter_record(
            record.topic,
            record.partition,
            record.offset,
            nack.code,
            nack.message,
            key=record.key,
            value=record.value,
            headers=record.headers,
        )
        # One partition takes them all: dead letters are few.
        await self._log.append(topics.prefixed(self._prefix, topics.DEADLETTERS), 0, key, value, headers)

    async def _open(self) -> None:
        """Make the stream, for a publish without one is refused, and go on looking until it is as it should be."""
        pause = FIRST_PAUSE_SECONDS
        while (state := await ensure_ceremony_stream(await self._connection.jetstream())) != "ok":
            if state != self._stream_state:
                log.warning("stream_not_ready", reason=state)
            self._stream_state = state
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._stream_state = "ok"
        self._opened.set()


def outgoing(record: Record) -> Outgoing | None:
    """The message of a record of `events`; None where it is none of ours."""
    headers = dict(record.headers)
    subject, effect_id = headers.get(topics.SUBJECT), headers.get(topics.EFFECT_ID)
    if not subject or not effect_id or not record.value:
        return None
    try:
        return Outgoing(effect_id.decode(), subject.decode(), record.value, record)
    except UnicodeDecodeError:
        return None
