"""Brings the stream CEREMONY back from the log: every event that is retained, under the id it was published with.

What the stream holds already is not stored twice, so it can be repeated, broken off, and run beside the bridges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import nats.errors
import structlog

from bridge.nats.connection import NatsConnection
from bridge.nats.events import outgoing
from bridge.nats.progress import PartitionProgress, SentMarks, StreamMissing, stored_since
from bridge.nats.publish import JetStreamPublisher, Nack
from bridge.nats.streams import ensure_ceremony_stream
from bridge.nats.window import LONGEST_PAUSE_SECONDS, Outgoing, PublishWindow
from ports.clock import Clock
from ports.log import Log, Record
from streams import topics
from streams.dead_letters import DEADLETTER_SUBJECT, dead_letter_event, letter_of

LOOK_AGAIN_SECONDS = 240.0
"""Bridges publish meanwhile: what they have stored is looked up before JetStream's duplicate window forgets it."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Republished:
    """How far it has come; counts of records of the log."""

    total: int = 0
    """Retained when it began, those before `since` included."""
    read: int = 0
    sent: int = 0
    """Stored now, or known to JetStream's duplicate window."""
    present: int = 0
    """Left alone: the stream has them."""
    refused: int = 0
    """None of ours, or refused for good by NATS: the bridge has made dead letters of them."""


class Republisher:
    """`run` reads the topics `events` and `deadletters` from their start to the end they have now.

    Memory is bounded by one batch and, only where the stream was not lost, the ids that it holds since then (about
    150 bytes each).
    """

    def __init__(
        self,
        log: Log,
        connection: NatsConnection,
        clock: Clock,
        *,
        prefix: str,
        since_ms: int = 0,
        tell: Callable[[Republished], None] = lambda _: None,
    ) -> None:
        """`since_ms`: only what the log took from then on. `tell`: hears of the progress after each batch."""
        self._log = log
        self._connection = connection
        self._clock = clock
        self._publisher = JetStreamPublisher(connection)
        self._prefix = prefix
        self._since = since_ms
        self._tell = tell
        self._stored: set[str] = set()
        self._looked: float | None = None
        self.progress = Republished()

    async def run(self) -> Republished:
        """Returns when all is stored; waits for NATS as long as it takes. Raises LogUnavailable."""
        names = [topics.prefixed(self._prefix, name) for name in (topics.EVENTS, topics.DEADLETTERS)]
        spans = [(name, n, *ends) for name in names for n, ends in enumerate(await self._log.ends(name))]
        self.progress.total = sum(end - start for _, _, start, end in spans)
        await self._make_stream()
        for name, partition, start, end in spans:
            async for records in self._log.read(name, partition, start, end):
                self.progress.read += len(records)
                wanted = [record for record in records if record.timestamp >= self._since]
                if wanted:
                    await self._look()
                    await self._publish(wanted)
                self._tell(self.progress)
        return self.progress

    async def _publish(self, records: Sequence[Record]) -> None:
        messages = []
        for key, message in self._messages(records):
            if message.id in self._stored:
                self.progress.present += 1
            else:
                messages.append((key, message))
        refused = self.progress.refused
        window = PublishWindow(
            messages,
            self._connection,
            self._publisher,
            self._clock,
            self._refused,
            progress=PartitionProgress(
                SentMarks(), end=0, read_back_at=math.inf
            ),  # `_stored` knows what the stream holds
            fresh=lambda: True,
        )
        await window.run()
        self.progress.sent += len(messages) - (self.progress.refused - refused)

    def _messages(self, records: Sequence[Record]) -> Iterator[tuple[bytes, Outgoing]]:
        for record in records:
            if record.topic == topics.prefixed(self._prefix, topics.DEADLETTERS):
                key, data = dead_letter_event(letter_of(record))
                yield key.encode(), Outgoing(key, DEADLETTER_SUBJECT, data, record)
            elif (message := outgoing(record, dict(record.headers))) is None:
                self.progress.refused += 1
            else:
                yield record.key or message.id.encode(), message

    async def _refused(self, message: Outgoing, nack: Nack) -> None:
        self.progress.refused += 1
        log.warning("not_republished", id=message.id[:200], code=nack.code, reason=nack.message)

    async def _make_stream(self) -> None:
        while (state := await ensure_ceremony_stream(await self._connection.jetstream())) != "ok":
            log.warning("stream_not_ready", reason=state)
            await self._clock.sleep(LONGEST_PAUSE_SECONDS)

    async def _look(self) -> None:
        """Learn what the stream has, now and then again."""
        now = self._clock.monotonic()
        if self._looked is not None and now - self._looked < LOOK_AGAIN_SECONDS:
            return
        while True:
            try:
                self._stored = await stored_since(self._connection, self._since)
            except StreamMissing:
                await self._make_stream()
            except (nats.errors.Error, OSError, TimeoutError):
                await self._clock.sleep(LONGEST_PAUSE_SECONDS)
            else:
                self._looked = now
                return
