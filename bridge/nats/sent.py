"""What CEREMONY holds already of events whose publishing a crash may have cut short.

JetStream drops what it was sent within its duplicate window. An event that waited longer than that for the next worker
may have been stored by the last one: then its id is read back from the stream.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import structlog
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bridge.nats.connection import API_TIMEOUT_SECONDS, NatsConnection, swallowed_cancel
from bridge.nats.publish import MESSAGE_ID
from bridge.nats.streams import CEREMONY

MARGIN_SECONDS = 60.0
"""How far the clocks of the log and of NATS may be apart."""
BATCH = 1000
IDLE_SECONDS = 5.0

log = structlog.get_logger(__name__)


class StreamGone(Exception):
    """There is no stream CEREMONY to read back from."""


class _Config(msgspec.Struct):
    duplicate_window: int = 0
    """Nanoseconds."""


class _State(msgspec.Struct):
    messages: int = 0


class _Info(msgspec.Struct):
    ts: datetime | None = None
    """The server's clock: whoever compares with our host's is wrong by its error."""
    config: _Config | None = None
    state: _State | None = None


_decode = msgspec.json.Decoder(_Info).decode


async def sent_since(connection: NatsConnection, since_ms: int) -> set[str]:
    """Message ids stored since a minute before `since_ms` (the log's clock); empty where the duplicate window serves.

    Raises nats.errors.Error or TimeoutError when JetStream does not answer, StreamGone.
    """
    since = datetime.fromtimestamp(since_ms / 1000, UTC) - timedelta(seconds=MARGIN_SECONDS)
    if await _window_serves(connection, since):
        return set()
    found = await _read_back(connection, since)
    log.info("events_read_back", since=since.isoformat(), count=len(found))
    return found


async def _window_serves(connection: NatsConnection, since: datetime) -> bool:
    client = await connection.connected()
    answer = await client.request(f"$JS.API.STREAM.INFO.{CEREMONY}", b"", timeout=API_TIMEOUT_SECONDS)
    info = _decode(answer.data)
    if info.ts is None or info.config is None or info.state is None:
        raise StreamGone
    window = timedelta(microseconds=info.config.duplicate_window / 1000) - timedelta(seconds=MARGIN_SECONDS)
    return info.state.messages == 0 or info.ts - since < window


async def _read_back(connection: NatsConnection, since: datetime) -> set[str]:
    jetstream = await connection.jetstream()
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_TIME,
        opt_start_time=since,
        ack_policy=AckPolicy.NONE,
        headers_only=True,
        mem_storage=True,
        inactive_threshold=IDLE_SECONDS,
    )
    subscription = await jetstream.pull_subscribe(">", stream=CEREMONY, config=config)
    found: set[str] = set()
    try:
        left = (await subscription.consumer_info()).num_pending or 0
        while left > 0:
            messages = await subscription.fetch(min(left, BATCH), timeout=API_TIMEOUT_SECONDS)
            if swallowed_cancel():
                raise asyncio.CancelledError
            left -= len(messages)
            found.update(message_id for m in messages if (message_id := (m.headers or {}).get(MESSAGE_ID)))
    finally:
        if connection.is_connected:
            await subscription.unsubscribe()
    return found
