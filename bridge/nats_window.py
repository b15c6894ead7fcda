"""Publishes one batch to JetStream: many ceremonies in flight, one message of each, until all are settled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import nats.errors
import structlog

from bridge import nats_metrics as metrics
from bridge.nats_connection import NatsConnection, swallowed_cancel
from bridge.nats_progress import Share
from bridge.nats_publish import MESSAGE_ID, Answer, JetStreamPublisher, Nack, refusal
from bridge.nats_sent import StreamGone, sent_since
from bridge.nats_streams import ensure_ceremony_stream
from steps.ports import Clock
from streams.transport.contract import Record

WINDOW = 512
"""Messages in flight per partition."""
ACK_SECONDS = 5.0
"""A window that made no progress for so long is sent again."""
LOOK_SECONDS = 0.5
FRESH_SECONDS = 0.1
"""Between two looks whether the group has confirmed our membership."""
AGAIN_SECONDS = 60.0
"""So long a look back at what others sent serves: far less than the duplicate window."""
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
        *,
        share: Share,
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
        lanes: dict[bytes, Lane] = {}
        for key, message in messages:
            lanes.setdefault(key, Lane()).queue.append(message)
        self._ready = deque(lanes.values())
        self._flying: dict[int, Lane] = {}
        self._refused: list[tuple[Lane, Nack]] = []
        self._trouble: Nack | None = None
        self._left = len(messages)
        self._oldest = min((message.record.timestamp for _, message in messages), default=0)
        self._share = share
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
            self._recall()

    @property
    def _must_look_back(self) -> bool:
        """What another had under way may have been stored after our last look, and the duplicate window forgets it."""
        return self._clock.monotonic() - self._share.looked > AGAIN_SECONDS

    async def _send_ready(self) -> None:
        while not self._fresh():
            await self._clock.sleep(FRESH_SECONDS)
        client = await self._publisher.client()
        self._generation = self._connection.generation
        while self._ready and len(self._flying) < self._limit:
            if not self._fresh():
                self._wake.set()
                return
            lane = self._ready.popleft()
            message = lane.queue[0]
            if message.id in self._share.stored:
                self._next(lane)
                continue
            headers = {MESSAGE_ID: message.id}
            if refused := refusal(client, message.subject, message.data, headers):
                self._refused.append((lane, refused))
                self._wake.set()
                continue
            self._flying[id(lane)] = lane
            self._connection.only_while(self._fresh)
            try:
                lane.token = await self._publisher.send(
                    client, message.subject, message.data, headers, partial(self._answered, lane)
                )
            except (nats.errors.Error, OSError):
                self._trouble = Nack("stream_unavailable", "the connection broke", final=False)
                self._wake.set()
                return
            _end_if_cancelled()

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
                self._share.stored |= await sent_since(self._connection, self._oldest)
                return self._share.looked_back(began)
            except StreamGone:
                return self._share.looked_back(began)
            except (nats.errors.Error, OSError, TimeoutError):
                _end_if_cancelled()
                await self._rest()

    def _recall(self) -> None:
        """Forget what is in flight; its lanes are to be sent again."""
        metrics.RESENT.inc(len(self._flying))
        for lane in self._flying.values():
            self._publisher.forget(lane.token)
            self._ready.append(lane)
        self._flying.clear()


def _end_if_cancelled() -> None:
    """nats-py swallows a cancel in places; who goes on then holds up the group, which waits for the partition."""
    if swallowed_cancel():
        raise asyncio.CancelledError
