"""Progress of publishing a partition of `events`: the marks committed with the offset, and the ids the stream holds.

After a crash the engine may write effects into `events` again, at higher offsets but with the same (command offset,
ordinal). These places rise within each fold, so every place up to the highest sent one has been sent.

JetStream drops a repeated id only within its duplicate window. When an event waited longer than that, the previous
worker may already have stored it, so its id is read back from the stream. Only ids of the partition are kept, and what
was read once is not read again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

import msgspec
import structlog
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bridge.nats.connection import API_TIMEOUT_SECONDS, NatsConnection, swallowed_cancel
from bridge.nats.publish import MESSAGE_ID
from bridge.nats.streams import CEREMONY
from ports.errors import CeremonyError
from ports.log import Committed, Record
from streams import topics

# The highest place is kept for this many of the newest folds; engines with older folds send nothing any more.
FOLDS_KEPT = 16
LONGEST_NUMBER = 18
# Largest difference between the clocks of the log and of NATS.
CLOCK_MARGIN_SECONDS = 60.0
READ_BACK_BATCH = 1000
# Ids of a partition that are kept after a read-back. Where there are more, each batch reads back its own.
MOST_STORED = 20_000
CONSUMER_IDLE_SECONDS = 5.0

log = structlog.get_logger(__name__)

# Offset of the command, and the effect's ordinal among the command's effects.
EffectPlace = tuple[int, int]

_encode_places = msgspec.json.Encoder().encode
_decode_places = msgspec.json.Decoder(dict[int, EffectPlace]).decode


class StreamMissing(CeremonyError):
    """The stream CEREMONY does not exist, so there is nothing to read back."""

    def __init__(self) -> None:
        super().__init__(
            "stream_missing", "the stream does not exist", place=CEREMONY, remedy="the events bridge makes it"
        )


class SentMarks:
    """The highest sent place of each fold."""

    def __init__(self, highest: dict[int, EffectPlace] | None = None) -> None:
        self._highest = highest or {}

    @classmethod
    def from_note(cls, note: str) -> Self:
        """SentMarks from a committed note. Another format is ignored: message ids then find the duplicates."""
        if not note:
            return cls()
        try:
            return cls(_decode_places(note.encode()))
        except (msgspec.DecodeError, UnicodeEncodeError):
            log.warning("note_of_bridge_undecodable", note=note[:100])
            return cls()

    @property
    def note(self) -> str:
        newest = sorted(self._highest)[-FOLDS_KEPT:]
        return _encode_places({fold: self._highest[fold] for fold in newest}).decode()

    def copy(self) -> SentMarks:
        return SentMarks(dict(self._highest))

    def already_sent(self, headers: Mapping[str, bytes]) -> bool:
        """Return whether the record's effect was sent before; if not, mark it as sent."""
        found = place_of(headers)
        if found is None:
            return False
        fold, place = found
        if place <= self._highest.get(fold, (-1, -1)):
            return True
        self._highest[fold] = place
        return False


def place_of(headers: Mapping[str, bytes]) -> tuple[int, EffectPlace] | None:
    """Fold and place of a record of `events`; None when its headers do not hold them."""
    fold, offset, ordinal = headers.get(topics.FOLD), headers.get(topics.COMMAND_OFFSET), headers.get(topics.ORDINAL)
    if not (fold and offset and ordinal and fold.isdigit() and offset.isdigit() and ordinal.isdigit()):
        return None
    if len(fold) > LONGEST_NUMBER or len(offset) > LONGEST_NUMBER or len(ordinal) > LONGEST_NUMBER:
        return None
    return int(fold), (int(offset), int(ordinal))


@dataclass(slots=True)
class PartitionProgress:
    """Progress of one partition since it was assigned to this bridge."""

    marks: SentMarks
    end: int
    """End of the log at the assignment: no former owner can have sent records from here on."""
    read_back_at: float = -math.inf
    """Monotonic time of the last read-back from the stream; -inf before the first, inf when none is needed."""
    stored: set[str] = field(default_factory=set)
    """Message ids that the stream is known to hold; at most MOST_STORED, and those of one batch."""
    read_until: int = 0
    """Everything stored before this time was read back: milliseconds of the server's clock."""
    of_one_batch: bool = False
    """True when `stored` holds only ids of the present batch, because those of the partition were too many."""
    is_mine: Callable[[str], bool] = lambda _: True
    """Returns whether a message id may be one of this partition."""

    @classmethod
    def from_committed(cls, committed: Committed, is_mine: Callable[[str], bool]) -> Self:
        return cls(SentMarks.from_note(committed.note), committed.end, is_mine=is_mine)

    def begin_batch(self, first: Record) -> None:
        """Forget the stored ids once a batch begins behind everything that a former owner can have sent."""
        if first.offset >= self.end:
            self.read_back_at = math.inf
            self.stored = set()
        elif self.of_one_batch:
            self.read_back_at, self.read_until = -math.inf, 0
            self.stored, self.of_one_batch = set(), False

    def note_read_back(self, at: float) -> None:
        """Note that `stored` and the duplicate window cover the stream's content at this monotonic time."""
        self.read_back_at = max(self.read_back_at, at)

    async def read_back(self, connection: NatsConnection, oldest_ms: int, batch: Collection[str]) -> None:
        """Read the ids that were stored since the batch's oldest record, and not before the last read-back.

        Raises nats.errors.Error or TimeoutError when JetStream does not answer, StreamMissing.
        """
        since = datetime.fromtimestamp(max(oldest_ms, self.read_until) / 1000, UTC)
        since -= timedelta(seconds=CLOCK_MARGIN_SECONDS)
        now = await _outside_window(connection, since)
        if now is None:
            return
        found = 0
        async for ids in _read_ids(connection, since):
            found += len(ids)
            self.stored.update(filter(self.is_mine, ids))
            if len(self.stored) > MOST_STORED or self.of_one_batch:
                self.of_one_batch = True
                self.stored.intersection_update(batch)
        self.read_until = int(now.timestamp() * 1000)
        log.info("events_read_back", since=since.isoformat(), read=found, kept=len(self.stored))


def ids_of_partition(partition_of: Callable[[bytes], int], partition: int) -> Callable[[str], bool]:
    """Return whether an effect id belongs to a ceremony of this partition; another kind of id may belong to any."""

    def is_mine(message_id: str) -> bool:
        instance_id, slash, _ = message_id.partition("/")
        return not slash or ":" not in instance_id or partition_of(instance_id.encode()) == partition

    return is_mine


class _Config(msgspec.Struct):
    duplicate_window: int = 0
    """Nanoseconds."""


class _State(msgspec.Struct):
    messages: int = 0


class _StreamInfo(msgspec.Struct):
    ts: datetime | None = None
    """The server's clock; the host's clock would add its own error to the comparison."""
    config: _Config | None = None
    state: _State | None = None


_decode_info = msgspec.json.Decoder(_StreamInfo).decode


async def stored_since(connection: NatsConnection, since_ms: int, wanted: Collection[str]) -> set[str]:
    """Those of the wanted message ids that were stored since a minute before `since_ms`.

    Empty when the duplicate window covers that. Raises nats.errors.Error or TimeoutError when JetStream does not
    answer, StreamMissing.
    """
    since = datetime.fromtimestamp(since_ms / 1000, UTC) - timedelta(seconds=CLOCK_MARGIN_SECONDS)
    if await _outside_window(connection, since) is None:
        return set()
    return {message_id async for ids in _read_ids(connection, since) for message_id in ids if message_id in wanted}


async def _outside_window(connection: NatsConnection, since: datetime) -> datetime | None:
    """The server's time; None when the duplicate window covers everything since `since`, or nothing is stored."""
    client = await connection.connected()
    answer = await client.request(f"$JS.API.STREAM.INFO.{CEREMONY}", b"", timeout=API_TIMEOUT_SECONDS)
    info = _decode_info(answer.data)
    if info.ts is None or info.config is None or info.state is None:
        raise StreamMissing
    window = timedelta(microseconds=info.config.duplicate_window / 1000) - timedelta(seconds=CLOCK_MARGIN_SECONDS)
    return None if info.state.messages == 0 or info.ts - since < window else info.ts


async def _read_ids(connection: NatsConnection, since: datetime) -> AsyncGenerator[list[str]]:
    """The ids stored since this time, in pieces of READ_BACK_BATCH."""
    jetstream = await connection.jetstream()
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_TIME,
        opt_start_time=since,
        ack_policy=AckPolicy.NONE,
        headers_only=True,
        mem_storage=True,
        inactive_threshold=CONSUMER_IDLE_SECONDS,
    )
    subscription = await jetstream.pull_subscribe(">", stream=CEREMONY, config=config)
    try:
        left = (await subscription.consumer_info()).num_pending or 0
        while left > 0:
            messages = await subscription.fetch(min(left, READ_BACK_BATCH), timeout=API_TIMEOUT_SECONDS)
            if swallowed_cancel():
                raise asyncio.CancelledError
            left -= len(messages)
            yield [message_id for m in messages if (message_id := (m.headers or {}).get(MESSAGE_ID))]
    finally:
        if connection.is_connected:
            await subscription.unsubscribe()
