"""Publishes one batch to JetStream: many ceremonies in flight, one message of each, until all are acknowledged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import nats.errors
import structlog
from nats.js.errors import APIError

from bridge.nats import hops, metrics
from bridge.nats.client import FencedClient
from bridge.nats.connection import NatsConnection, swallowed_cancel
from bridge.nats.headers import read_lines
from bridge.nats.progress import PartitionProgress, StreamMissing
from bridge.nats.publish import MESSAGE_ID, Answer, JetStreamPublisher, Nack, refusal, surely_fits
from bridge.nats.streams import CEREMONY, NO_ANSWER, ensure_ceremony_stream, no_answer
from ports.clock import Clock
from ports.log import Record
from ports.redaction import Redactor
from streams.dead_letters import DEADLETTER_SUBJECT
from streams.envelope import redacted_envelopes

# Messages in flight per partition.
WINDOW = 512
# Values given to the client in one call; the last of them may exceed it.
PIECE_BYTES = 256 * 1024
# A window without an acknowledgement for so long is sent again.
ACK_SECONDS = 5.0
CHECK_SECONDS = 0.5
# Between two checks whether the group has confirmed this worker's membership.
FRESH_SECONDS = 0.1
# A read-back from the stream is valid for so long, which is far less than the duplicate window.
READ_BACK_AGAIN_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0

log = structlog.get_logger(__name__)


class Outgoing(msgspec.Struct):
    """One message to send."""

    id: str
    """`Nats-Msg-Id`: the effect id, or the key of a dead letter."""
    subject: str
    data: bytes
    record: Record
    beside: str = ""
    """Its other headers, as lines of `header_lines`."""
    successor: Outgoing | None = None
    """The next message of its ceremony, sent after this one is acknowledged so that their order holds."""


Reject = Callable[[Outgoing, Nack], Awaitable[None]]
# Receives the reason for which NATS takes no messages, and the number of them.
OnRefusal = Callable[[str, int], Awaitable[None]]


async def _nobody_listens(_: str, __: int) -> None:
    pass


class PublishWindow:
    """Publishes one batch: many ceremonies in flight, one message of each."""

    def __init__(
        self,
        messages: Sequence[tuple[bytes, Outgoing]],
        connection: NatsConnection,
        publisher: JetStreamPublisher,
        clock: Clock,
        reject: Reject,
        limit: int = WINDOW,
        *,
        progress: PartitionProgress,
        fresh: Callable[[], bool],
        redactor: Redactor,
        refused: OnRefusal = _nobody_listens,
    ) -> None:
        """`messages`: pairs of a key and a message; messages with the same key keep their order. All are redacted.

        `progress` is that of their partition; an earlier run may have sent some of them. `fresh` returns whether the
        partition certainly still belongs to this worker; otherwise nothing is sent. `refused` is called with the reason
        and the number of messages that wait, each time that NATS does not take them.
        """
        self._connection = connection
        self._publisher = publisher
        self._clock = clock
        self._reject = reject
        self._limit = limit
        self._wake = asyncio.Event()
        self._ready: deque[Outgoing] = deque()
        last: dict[bytes, Outgoing] = {}
        _redact([message for _, message in messages], redactor)
        for key, message in messages:
            if (before := last.get(key)) is None:
                self._ready.append(message)
            else:
                before.successor = message
            last[key] = message
        self._in_flight: dict[int, Outgoing] = {}
        """By token."""
        self._refused: list[tuple[Outgoing, Nack]] = []
        self._failure: Nack | None = None
        self._left = len(messages)
        self._published = 0
        """Acknowledged messages that the metrics do not count yet."""
        self._last: Record | None = None
        """The record of the last of them that is an event: that of a dead letter may look like one."""
        self._oldest = min((message.record.timestamp for _, message in messages), default=0)
        self._progress = progress
        self._fresh = fresh
        self._refused_because = refused
        self._ids = frozenset(message.id for _, message in messages)
        self._pause = FIRST_PAUSE_SECONDS

    async def run(self) -> None:
        """Returns when every message is acknowledged or rejected."""
        try:
            if self._left and self._must_read_back:
                await self._read_back()
            while self._left:
                await self._send_ready()
                await self._handle_answers()
        finally:
            self._count()
            self._requeue_in_flight()

    @property
    def _must_read_back(self) -> bool:
        """Messages of another worker may have been stored after the last read-back, and leave the duplicate window."""
        return self._clock.monotonic() - self._progress.read_back_at > READ_BACK_AGAIN_SECONDS

    async def _send_ready(self) -> None:
        while not self._fresh():
            await self._clock.sleep(FRESH_SECONDS)
        client = await self._publisher.client()
        self._generation = self._connection.generation
        while self._ready and len(self._in_flight) < self._limit:
            if not self._fresh():
                self._wake.set()
                return
            picked = self._pick(client)
            if not picked:
                continue
            tokens = self._publisher.expect(self._answered, len(picked))
            self._in_flight.update(zip(tokens, picked, strict=True))
            self._connection.only_while(self._fresh)
            try:
                await self._publisher.send_all(client, tokens, picked)
            except (nats.errors.Error, OSError):
                self._failure = Nack("stream_unavailable", "the connection broke", final=False)
                self._wake.set()
                return
            _end_if_cancelled()

    def _pick(self, client: FencedClient) -> list[Outgoing]:
        """The next messages to send, for one piece of the connection's buffer."""
        picked: list[Outgoing] = []
        ready, stored, size = self._ready, self._progress.stored, 0
        room = self._limit - len(self._in_flight)
        while ready and len(picked) < room and size < PIECE_BYTES:
            message = ready.popleft()
            if message.id in stored:
                self._message_done(message)
            elif not surely_fits(client, message) and (refused := _refusal(client, message)):
                self._refused.append((message, refused))
                self._wake.set()
            else:
                picked.append(message)
                size += len(message.data)
        return picked

    def _answered(self, token: int, answer: Answer) -> None:
        message = self._in_flight.pop(token)
        self._wake.set()
        if isinstance(answer, Nack):
            if answer.final:
                self._refused.append((message, answer))
            else:
                self._ready.append(message)
                self._failure = answer
            return
        self._published += 1
        if message.subject != DEADLETTER_SUBJECT:
            self._last = message.record
        if answer.duplicate:
            metrics.DUPLICATES.inc()
        self._message_done(message)

    def _message_done(self, message: Outgoing) -> None:
        self._left -= 1
        if message.successor is not None:
            self._ready.append(message.successor)

    async def _handle_answers(self) -> None:
        """Wait for answers, reject refused messages, and back off after a failure."""
        if self._left and not self._refused and not self._failure:
            await self._wait()
        self._wake.clear()
        self._count()
        for message, refused in self._refused:
            await self._reject(message, refused)
            self._message_done(message)
        self._refused.clear()
        if self._failure is not None:
            await self._back_off(self._failure)

    async def _wait(self) -> None:
        deadline = self._clock.monotonic() + ACK_SECONDS
        while not self._wake.is_set():
            try:
                async with self._clock.timeout(CHECK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                if self._connection.generation != self._generation:
                    self._failure = Nack("stream_unavailable", "the connection was renewed", final=False)
                    return
                if self._clock.monotonic() >= deadline:
                    self._failure = Nack("stream_unavailable", "no acknowledgement came", final=False)
                    return

    async def _back_off(self, failure: Nack) -> None:
        # Messages in flight may be stored or lost; sent again with the same id they are stored once.
        self._failure = None
        self._requeue_in_flight()
        log.debug("nats_publish_waits", code=failure.code, reason=failure.message, left=self._left)
        await self._refused_because(f"stream {CEREMONY} takes no events: {failure.message}", self._left)
        await self._pause_longer()
        await self._read_back()

    async def _pause_longer(self) -> None:
        await self._clock.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    async def _read_back(self) -> None:
        """Find out which messages of the batch are stored, before sending any (again). Makes a missing stream."""
        while True:
            started_at = self._clock.monotonic()
            try:
                state = await ensure_ceremony_stream(self._connection)
                if state == "ok":
                    await self._progress.read_back(self._connection, self._oldest, self._ids)
                    return self._progress.note_read_back(started_at)
            except StreamMissing:
                return self._progress.note_read_back(started_at)
            except APIError as error:  # a work queue that another consumer reads, for one
                state = f"stream {CEREMONY} cannot be read back: {no_answer(error)}"
            except (nats.errors.Error, OSError, TimeoutError):
                _end_if_cancelled()
                state = NO_ANSWER
            await self._refused_because(state, self._left)
            await self._pause_longer()

    def _requeue_in_flight(self) -> None:
        """Put the messages in flight back into the queue, to be sent again."""
        metrics.RESENT.inc(len(self._in_flight))
        self._publisher.forget(self._in_flight)
        self._ready.extend(self._in_flight.values())
        self._in_flight.clear()

    def _count(self) -> None:
        if self._published:
            self._pause = FIRST_PAUSE_SECONDS
            metrics.PUBLISHED.inc(self._published)
            if self._last is not None:
                hops.observe(self._last, self._published, self._clock.wall() * 1000)
            self._published = 0


def _redact(messages: Sequence[Outgoing], redactor: Redactor) -> None:
    """Redact messages in place; the engine did so as it wrote them, except one of an older release."""
    clean = redacted_envelopes([message.data for message in messages], redactor)
    for message, data in zip(messages, clean, strict=True):
        message.data = data


def _refusal(client: FencedClient, message: Outgoing) -> Nack | None:
    return refusal(client, message.subject, message.data, {MESSAGE_ID: message.id, **read_lines(message.beside)})


def _end_if_cancelled() -> None:
    """End a task whose cancel nats-py swallowed; otherwise it delays the group, which waits for the partition."""
    if swallowed_cancel():
        raise asyncio.CancelledError
