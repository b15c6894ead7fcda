"""Shared by the tests of the NATS bridges: a real nats-server, the embedded log, a reader of the stream CEREMONY."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import nats as nats_py
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.clock import HostClock
from bridge.nats.connection import NatsConnection
from ports.log import Record, TopicSpec
from streams import topics
from streams.envelope import event_record
from streams.transport.sqlite.log import SqliteLog
from tables.effects import Event

PREFIX = "t"
PARTITIONS = 3
PATIENCE = 30.0

CLOCK = HostClock()


@contextlib.asynccontextmanager
async def connection(url: str, **options: Any) -> AsyncIterator[NatsConnection]:
    """A connection like a worker's."""
    link = NatsConnection(url, CLOCK, **options)
    await link.start()
    try:
        yield link
    finally:
        await link.stop()


@contextlib.asynccontextmanager
async def client(url: str) -> AsyncIterator[Client]:
    """A client outside the engine."""

    async def quiet(_: Exception) -> None: ...

    link = await nats_py.connect(url, error_cb=quiet)
    try:
        yield link
    finally:
        await link.close()


@contextlib.asynccontextmanager
async def embedded_log(folder: Path) -> AsyncIterator[SqliteLog]:
    """The embedded log with the topics that the bridges use."""
    log = SqliteLog(folder / "log.sqlite", CLOCK)
    await log.start()
    try:
        await log.create(
            [TopicSpec(f"{PREFIX}.{name}", PARTITIONS) for name in (topics.COMMANDS, topics.EVENTS, topics.DEADLETTERS)]
        )
        yield log
    finally:
        await log.stop()


async def eventually(holds: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until the condition holds; fail with the text `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.02)


def event(ceremony: int, number: int, size: int = 0) -> Event:
    """The event `number` of a ceremony, with a payload of about `size` bytes."""
    instance = f"c-{ceremony}:s-1"
    return Event(
        id=f"{instance}/{number}/0@1",
        subject="ceremony.transition.applied",
        instance_id=instance,
        correlation_id=f"corr-{ceremony}",
        at=1_769_860_800_000 + number,
        payload={"instance_id": instance, "number": number, "fill": "x" * size},
    )


async def append_events(log: SqliteLog, events: Sequence[Event]) -> None:
    """Write events like the ceremony agent; the same event always comes from the same command."""
    for one in events:
        offset = int(one.payload["number"]) * 1000 + int(one.correlation_id.removeprefix("corr-"))
        key, value, headers = event_record(one, offset, 0, 1)
        partition = log.partition_of(key, PARTITIONS)
        await log.append(f"{PREFIX}.{topics.EVENTS}", partition, key, value, headers)


async def stored(url: str, stream: str = "CEREMONY") -> list[Msg]:
    """All messages of a stream, in its order."""
    async with client(url) as link:
        jetstream = link.jetstream()
        try:
            count = (await jetstream.stream_info(stream)).state.messages
        except nats_py.js.errors.NotFoundError:
            return []
        found: list[Msg] = []
        subscription = await jetstream.subscribe(">", stream=stream, ordered_consumer=True)
        while len(found) < count:
            found.append(await subscription.next_msg(timeout=10))
        await subscription.unsubscribe()
        return found


async def count(url: str, stream: str = "CEREMONY") -> int:
    """The number of messages in the stream."""
    async with client(url) as link:
        state: Any = (await link.jetstream().stream_info(stream)).state
        return int(state.messages)


async def records(log: SqliteLog, topic: str) -> list[Record]:
    """All records of a topic."""
    name = f"{PREFIX}.{topic}"
    found: list[Record] = []
    for partition, (start, end) in enumerate(await log.ends(name)):
        async for batch in log.read(name, partition, start, end):
            found.extend(batch)
    return found
