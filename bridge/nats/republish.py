"""Restores the stream CEREMONY from the log: publishes every retained event again, with its original id.

Events that the stream holds are not stored twice, so a run can be repeated, interrupted, and run beside the bridges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import nats.errors
import structlog

from bridge.nats.connection import NatsConnection
from bridge.nats.events import announcement, outgoing
from bridge.nats.progress import PartitionProgress, SentMarks, StreamMissing, stored_since
from bridge.nats.publish import JetStreamPublisher, Nack
from bridge.nats.streams import ensure_ceremony_stream
from bridge.nats.window import LONGEST_PAUSE_SECONDS, Outgoing, PublishWindow
from ports.clock import Clock
from ports.log import Log, Record
from ports.redaction import Redactor
from streams import topics
from streams.dead_letters import letter_of

# Bridges publish meanwhile, so the stored ids are read again before JetStream's duplicate window forgets them.
READ_BACK_AGAIN_SECONDS = 240.0

# Events of the log whose ids are looked for in the stream at once: some 15 MiB.
IDS_AT_ONCE = 100_000
# Later than any record, in milliseconds.
_LATEST_MS = 2**42

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Piece:
    """Successive records of a partition, up to `end`, with the ids of their messages."""

    end: int
    ids: set[str] = field(default_factory=set)
    oldest: int = _LATEST_MS


@dataclass(slots=True)
class Republished:
    """Progress of a run, in records of the log."""

    total: int = 0
    """Records retained at the start, including those before `since_ms`."""
    read: int = 0
    sent: int = 0
    """Stored by this run, or known to JetStream's duplicate window."""
    present: int = 0
    """Not sent, because the stream holds them."""
    refused: int = 0
    """No events, or refused by NATS for good; the bridge has made dead letters of them."""


class Republisher:
    """`run` reads the topics `events` and `deadletters` from their start to their present end.

    Memory holds one batch, and the ids of IDS_AT_ONCE events at most (about 150 bytes each). For so many events of the
    log the stream is read back once, from the time of the oldest of them.
    """

    def __init__(
        self,
        log: Log,
        connection: NatsConnection,
        clock: Clock,
        *,
        prefix: str,
        redactor: Redactor,
        since_ms: int = 0,
        on_progress: Callable[[Republished], None] = lambda _: None,
    ) -> None:
        """Publishes only records with timestamps from `since_ms` on. Calls `on_progress` after each batch."""
        self._log = log
        self._connection = connection
        self._clock = clock
        self._publisher = JetStreamPublisher(connection)
        self._prefix = prefix
        self._redactor = redactor
        self._since = since_ms
        self._on_progress = on_progress
        self._piece = _Piece(0)
        self._stored: set[str] = set()
        """Ids of the present piece that the stream holds."""
        self._stored_at: float | None = None
        self.progress = Republished()

    async def run(self) -> Republished:
        """Returns when all events are stored; waits for NATS without a limit. Raises LogUnavailable."""
        names = [topics.prefixed(self._prefix, name) for name in (topics.EVENTS, topics.DEADLETTERS)]
        spans = [(name, n, *ends) for name in names for n, ends in enumerate(await self._log.ends(name))]
        self.progress.total = sum(end - start for _, _, start, end in spans)
        await self._make_stream()
        for name, partition, start, end in spans:
            next_offset = start
            while next_offset < end:
                self._piece, self._stored_at = await self._next_piece(name, partition, next_offset, end), None
                async for records in self._log.read(name, partition, next_offset, self._piece.end):
                    await self._publish_batch(records)
                next_offset = self._piece.end
        return self.progress

    async def _next_piece(self, name: str, partition: int, start: int, end: int) -> _Piece:
        """Read ahead until there are enough ids."""
        piece = _Piece(end)
        batches: Any = self._log.read(name, partition, start, end)
        async with aclosing(batches):
            async for records in batches:
                for record in records:
                    if record.timestamp < self._since or (made := self._message(record)) is None:
                        continue
                    piece.ids.add(made[1].id)
                    piece.oldest = min(piece.oldest, record.timestamp)
                    if len(piece.ids) >= IDS_AT_ONCE:
                        piece.end = record.offset + 1
                        return piece
        return piece

    async def _publish_batch(self, records: Sequence[Record]) -> None:
        self.progress.read += len(records)
        wanted = [record for record in records if record.timestamp >= self._since]
        if wanted:
            await self._read_stored()
            await self._publish(wanted)
        self._on_progress(self.progress)

    async def _publish(self, records: Sequence[Record]) -> None:
        messages = []
        for made in map(self._message, records):
            if made is None:
                self.progress.refused += 1
                continue
            key, message = made
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
            ),  # `_stored` holds the ids in the stream
            fresh=lambda: True,
            redactor=self._redactor,
        )
        await window.run()
        self.progress.sent += len(messages) - (self.progress.refused - refused)

    def _message(self, record: Record) -> tuple[bytes, Outgoing] | None:
        """Return the message of a record under its key, or None where the record holds no event."""
        if record.topic == topics.prefixed(self._prefix, topics.DEADLETTERS):
            announced = announcement(letter_of(record), record)
            return announced.id.encode(), announced
        message = outgoing(record, dict(record.headers))
        return None if message is None else (record.key or message.id.encode(), message)

    async def _refused(self, message: Outgoing, nack: Nack) -> None:
        self.progress.refused += 1
        log.warning("not_republished", id=message.id[:200], code=nack.code, reason=nack.message)

    async def _make_stream(self) -> None:
        while (state := await ensure_ceremony_stream(self._connection)) != "ok":
            log.warning("stream_not_ready", reason=state)
            await self._clock.sleep(LONGEST_PAUSE_SECONDS)

    async def _read_stored(self) -> None:
        """Read those ids of the piece that the stream holds, at its start and every few minutes."""
        now = self._clock.monotonic()
        if self._stored_at is not None and now - self._stored_at < READ_BACK_AGAIN_SECONDS:
            return
        while True:
            try:
                self._stored = await stored_since(self._connection, self._piece.oldest, self._piece.ids)
            except StreamMissing:
                await self._make_stream()
            except (nats.errors.Error, OSError, TimeoutError):
                await self._clock.sleep(LONGEST_PAUSE_SECONDS)
            else:
                self._stored_at = now
                return
