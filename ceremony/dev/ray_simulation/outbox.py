"""Letters that go out to JetStream when they are due, each until it has been acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Protocol

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import PubAck, StorageType, StreamConfig
from nats.js.errors import NoStreamResponseError, NotFoundError

from ports.clock import Clock

STREAM = "AGENT_RESPONSES"
STREAM_SUBJECTS = ["agent.response.>"]
STREAM_SECONDS = 86_400.0

IN_FLIGHT = 2_000
ACK_SECONDS = 5.0
AGAIN_SECONDS = 1.0
IDLE_SECONDS = 3_600.0
# Letters sent in a row before other tasks of the loop get their turn.
BREATH = 200

CONNECT_SECONDS = 15.0
CLOSE_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Letter(Protocol):
    """A message to publish at least once."""

    @property
    def headers(self) -> dict[str, str] | None:
        """Of the message."""

    def compose(self) -> tuple[str, bytes] | None:
        """Subject and body, or None if there is nothing to send. Called again for each repetition."""

    def delivered(self) -> None:
        """Called once: JetStream has it, or there was nothing to send."""


@dataclass(slots=True)
class _Sent:
    letter: Letter
    at: float


class Outbox:
    """A task that publishes due letters, at most `in_flight` unacknowledged, and repeats those without an answer.

    A letter whose acknowledgement was lost goes out twice. The real executor, too, delivers at least once.
    """

    def __init__(self, connection: Client, clock: Clock, *, in_flight: int = IN_FLIGHT) -> None:
        self._clock = clock
        self._in_flight = in_flight
        self._connection = connection
        self._js = JetStreamContext(connection, publish_async_max_pending=2 * in_flight)
        self._due: list[tuple[float, int, Letter]] = []
        self._numbers = count()
        self._unacked: dict[asyncio.Future[PubAck], _Sent] = {}
        self._wake = asyncio.Event()
        self._stream_missing = False
        self._task: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Make the stream if it is missing, and begin. Raises nats.errors.Error."""
        await ensure_stream(self._js)
        self._task = self._clock.spawn(self._run(), name="ray-simulation-outbox")

    async def stop(self) -> None:
        """Wait a moment for acknowledgements. Letters that are not due yet are lost, as with the real executor."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(CLOSE_SECONDS):
                while self._unacked:
                    self._wake.clear()
                    await self._wake.wait()

    def put(self, due: float, letter: Letter) -> None:
        """Send `letter` at `due` (monotonic seconds)."""
        first = not self._due or due < self._due[0][0]
        heapq.heappush(self._due, (due, next(self._numbers), letter))
        if first:
            self._wake.set()

    async def _run(self) -> None:
        while True:
            now = self._clock.monotonic()
            self._give_up_waiting(now)
            if self._stream_missing:
                await self._restore_stream()
            await self._send_due(now)
            pause = self._pause(self._clock.monotonic())
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(pause):
                    await self._wake.wait()

    async def _send_due(self, now: float) -> None:
        sent = 0
        while self._due and self._due[0][0] <= now and len(self._unacked) < self._in_flight:
            await self._send(heapq.heappop(self._due)[2], now)
            sent += 1
            if sent % BREATH == 0:
                await self._clock.sleep(0)

    async def _send(self, letter: Letter, now: float) -> None:
        content = letter.compose()
        if content is None:
            letter.delivered()
            return
        subject, body = content
        if not self._connection.is_connected:
            # nats-py limits pending publishes, and never frees the place of one that its full buffer refuses.
            self.put(now + AGAIN_SECONDS, letter)
            return
        try:
            future = await self._js.publish_async(subject, body, headers=letter.headers)
        except (nats.errors.Error, OSError) as error:
            log.debug("answer_not_sent", subject=subject, error=type(error).__name__)
            self.put(now + AGAIN_SECONDS, letter)
            return
        self._unacked[future] = _Sent(letter, now)
        future.add_done_callback(partial(self._answered, letter))

    def _answered(self, letter: Letter, future: asyncio.Future[PubAck]) -> None:
        self._unacked.pop(future, None)
        self._wake.set()
        if not future.cancelled() and future.exception() is None:
            letter.delivered()
            return
        if not future.cancelled() and isinstance(future.exception(), NoStreamResponseError):
            self._stream_missing = True
        self.put(self._clock.monotonic() + AGAIN_SECONDS, letter)

    def _give_up_waiting(self, now: float) -> None:
        late = [future for future, sent in self._unacked.items() if sent.at + ACK_SECONDS <= now]
        for future in late:
            future.cancel()

    def _pause(self, now: float) -> float:
        """Seconds until the next due letter or acknowledgement timeout."""
        pause = IDLE_SECONDS
        if self._unacked:
            pause = next(iter(self._unacked.values())).at + ACK_SECONDS - now
        if self._due and len(self._unacked) < self._in_flight:
            pause = min(pause, self._due[0][0] - now)
        return max(0.0, pause)

    async def _restore_stream(self) -> None:
        try:
            await ensure_stream(self._js)
            self._stream_missing = False
        except nats.errors.Error as error:
            log.warning("stream_not_made", stream=STREAM, error=type(error).__name__)


async def ensure_stream(js: JetStreamContext) -> None:
    """Make the stream of the agents' answers if it is missing. An existing one stays unchanged."""
    try:
        await js.stream_info(STREAM)
    except NotFoundError:
        config = StreamConfig(name=STREAM, subjects=STREAM_SUBJECTS, storage=StorageType.FILE, max_age=STREAM_SECONDS)
        await js.add_stream(config)


async def connect(url: str, clock: Clock, *, name: str) -> Client:
    """Connect within 15 s, else raise TimeoutError. A connection that breaks later is reopened for ever."""
    client = Client()

    async def on_error(error: Exception) -> None:
        log.debug("nats_error", error=type(error).__name__)

    try:
        async with clock.timeout(CONNECT_SECONDS):
            await client.connect(url, name=name, error_cb=on_error, max_reconnect_attempts=-1, reconnect_time_wait=1)
    except BaseException:
        await client.close()
        raise
    return client
