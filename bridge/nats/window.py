"""Publishes one batch to JetStream: many ceremonies in flight, one message of each, until all are settled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import nats.errors
import structlog

from bridge.nats import metrics
from bridge.nats.client import FencedClient
from bridge.nats.connection import NatsConnection, swallowed_cancel
from bridge.nats.progress import PartitionProgress, StreamMissing, stored_since
from bridge.nats.publish import MESSAGE_ID, Answer, JetStreamPublisher, Nack, refusal, surely_fits
from bridge.nats.streams import ensure_ceremony_stream
from ports.clock import Clock
from ports.log import Record

WINDOW = 512
"""Messages in flight per partition."""
PIECE_BYTES = 256 * 1024
"""Of values, given to the client at once; with it the last one, however large."""
ACK_SECONDS = 5.0
"""A window that made no progress for so long is sent again."""
LOOK_SECONDS = 0.5
FRESH_SECONDS = 0.1
"""Between two looks whether the group has confirmed our membership."""
READ_BACK_AGAIN_SECONDS = 60.0
"""So long a look back at what others sent serves: far less than the duplicate window."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0

log = structlog.get_logger(__name__)


class Outgoing(msgspec.Struct):
    """One message to be sent."""

    id: str
    """Effect id, or the key of what comes from no fold: `Nats-Msg-Id`."""
    subject: str
    data: bytes
    record: Record
    behind: Outgoing | None = None
    """The next one of its ceremony: sent when this one is settled, so that their order holds."""


Reject = Callable[[Outgoing, Nack], Awaitable[None]]


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
    ) -> None:
        """`messages`: (key whose order holds, message).

        `share`: of their partition; another run may have sent some of them. `fresh`: whether it is surely ours still;
        while it is not, nothing is sent.
        """
        self._connection = connection
        self._publisher = publisher
        self._clock = clock
        self._reject = reject
        self._limit = limit
        self._wake = asyncio.Event()
        self._ready: deque[Outgoing] = deque()
        last: dict[bytes, Outgoing] = {}
        for key, message in messages:
            if (before := last.get(key)) is None:
                self._ready.append(message)
            else:
                before.behind = message
            last[key] = message
        self._flying: dict[int, Outgoing] = {}
        """By token."""
        self._refused: list[tuple[Outgoing, Nack]] = []
        self._trouble: Nack | None = None
        self._left = len(messages)
        self._published = 0
        """Acknowledged, and not yet counted for the metrics."""
        self._oldest = min((message.record.timestamp for _, message in messages), default=0)
        self._progress = progress
        self._fresh = fresh
        self._pause = FIRST_PAUSE_SECONDS

    async def run(self) -> None:
        """Returns when every message is acknowledged or set aside."""
        try:
            if self._left and self._must_look_back:
                await self._look_back()
            while self._left:
                await self._send_ready()
                await self._settle()
        finally:
            self._count()
            self._recall()

    @property
    def _must_look_back(self) -> bool:
        """What another had under way may have been stored after our last look, and the duplicate window forgets it."""
        return self._clock.monotonic() - self._progress.read_back_at > READ_BACK_AGAIN_SECONDS

    async def _send_ready(self) -> None:
        while not self._fresh():
            await self._clock.sleep(FRESH_SECONDS)
        client = await self._publisher.client()
        self._generation = self._connection.generation
        while self._ready and len(self._flying) < self._limit:
            if not self._fresh():
                self._wake.set()
                return
            picked = self._pick(client)
            if not picked:
                continue
            tokens = self._publisher.expect(self._answered, len(picked))
            self._flying.update(zip(tokens, picked, strict=True))
            self._connection.only_while(self._fresh)
            try:
                await self._publisher.send_all(client, tokens, picked)
            except (nats.errors.Error, OSError):
                self._trouble = Nack("stream_unavailable", "the connection broke", final=False)
                self._wake.set()
                return
            _end_if_cancelled()

    def _pick(self, client: FencedClient) -> list[Outgoing]:
        """Messages for one piece of the connection's buffer."""
        picked: list[Outgoing] = []
        ready, stored, size = self._ready, self._progress.stored, 0
        room = self._limit - len(self._flying)
        while ready and len(picked) < room and size < PIECE_BYTES:
            message = ready.popleft()
            if message.id in stored:
                self._next(message)
            elif not surely_fits(client, message) and (refused := _refusal(client, message)):
                self._refused.append((message, refused))
                self._wake.set()
            else:
                picked.append(message)
                size += len(message.data)
        return picked

    def _answered(self, token: int, answer: Answer) -> None:
        message = self._flying.pop(token)
        self._wake.set()
        if isinstance(answer, Nack):
            if answer.final:
                self._refused.append((message, answer))
            else:
                self._ready.append(message)
                self._trouble = answer
            return
        self._published += 1
        if answer.duplicate:
            metrics.DUPLICATES.inc()
        self._next(message)

    def _next(self, message: Outgoing) -> None:
        self._left -= 1
        if message.behind is not None:
            self._ready.append(message.behind)

    async def _settle(self) -> None:
        """Wait until something happened, and deal with what went wrong."""
        if self._left and not self._refused and not self._trouble:
            await self._wait()
        self._wake.clear()
        self._count()
        for message, refused in self._refused:
            await self._reject(message, refused)
            self._next(message)
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
        await self._rest()
        await self._look_back()

    async def _rest(self) -> None:
        await self._clock.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    async def _look_back(self) -> None:
        """Learn what is stored of this batch, before anything of it is sent (again); the stream is made if missing."""
        while True:
            began = self._clock.monotonic()
            try:
                await ensure_ceremony_stream(await self._connection.jetstream())
                self._progress.stored |= await stored_since(self._connection, self._oldest)
                return self._progress.note_read_back(began)
            except StreamMissing:
                return self._progress.note_read_back(began)
            except (nats.errors.Error, OSError, TimeoutError):
                _end_if_cancelled()
                await self._rest()

    def _recall(self) -> None:
        """Forget what is in flight; its lanes are to be sent again."""
        metrics.RESENT.inc(len(self._flying))
        self._publisher.forget(self._flying)
        self._ready.extend(self._flying.values())
        self._flying.clear()

    def _count(self) -> None:
        if self._published:
            self._pause = FIRST_PAUSE_SECONDS
            metrics.PUBLISHED.inc(self._published)
            self._published = 0


def _refusal(client: FencedClient, message: Outgoing) -> Nack | None:
    return refusal(client, message.subject, message.data, {MESSAGE_ID: message.id})


def _end_if_cancelled() -> None:
    """nats-py swallows a cancel in places; who goes on then holds up the group, which waits for the partition."""
    if swallowed_cancel():
        raise asyncio.CancelledError
