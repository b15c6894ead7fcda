"""Changelogs read back from a real Kafka: in several rounds, each in its order, independent of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from aiokafka import TopicPartition

from bridge.clock import HostClock
from ports.log import StateLost, TopicSpec
from streams.transport.kafka.client import FETCH_BYTES
from streams.transport.kafka.driver import _ChangelogRows
from streams.transport.kafka.log import KafkaLog
from streams.transport.kafka.recovery import CHANGELOGS_AT_ONCE, Recovery
from streams.transport.partition.backend import POSITION_KEY
from streams.transport.partition.row_store import MemoryStore
from tests.conftest import KafkaAddress
from tests.services import KafkaServer

PARTITIONS = CHANGELOGS_AT_ONCE + 3
# Rows of the first partition.
ROWS = 1_200
LARGE = b"x" * (2 * FETCH_BYTES)


@pytest.fixture
async def changelog(kafka: KafkaServer | KafkaAddress) -> AsyncIterator[str]:
    """Write many rows to the first partition; to each other one written twice, one deleted, and a large one."""
    log, topic = KafkaLog([kafka.bootstrap], HostClock()), f"changelog-{uuid4().hex[:8]}"
    await log.start()
    await log.create([TopicSpec(topic, PARTITIONS, compacted=True)])
    sends = [log.producer.send(topic, b"row %d" % n, b"%d" % n, partition=0) for n in range(ROWS)]
    for partition in range(1, PARTITIONS):
        for key, value in ((b"a", b"old"), (b"gone", b"1"), (b"a", b"new"), (b"gone", None), (b"large", LARGE)):
            sends.append(log.producer.send(topic, value, key, partition=partition))
    acks = [await asyncio.ensure_future(send) for send in sends]
    for ack in acks:
        await ack
    yield topic
    await log.stop()


async def test_each_changelog_is_read_to_its_end_and_in_order(
    kafka: KafkaServer | KafkaAddress, changelog: str
) -> None:
    recovery = Recovery([kafka.bootstrap], HostClock())
    found: dict[int, dict[bytes, bytes | None]] = {number: {} for number in range(PARTITIONS)}

    async def add(tp: TopicPartition, rows: dict[bytes, bytes | None]) -> None:
        found[tp.partition].update(rows)

    reads = [
        asyncio.ensure_future(recovery.read([TopicPartition(changelog, number)], add)) for number in range(PARTITIONS)
    ]
    await asyncio.gather(*reads)
    assert len(found.pop(0)) == ROWS
    assert all(rows == {b"a": b"new", b"gone": None, b"large": LARGE} for rows in found.values())


async def test_a_changelog_that_cannot_be_stored_fails_alone(kafka: KafkaServer | KafkaAddress, changelog: str) -> None:
    """Its part gets the error; the others are read to their end, and a later reading begins from the start."""
    recovery = Recovery([kafka.bootstrap], HostClock())
    kept: list[int] = []

    async def add(tp: TopicPartition, rows: dict[bytes, bytes | None]) -> None:
        await asyncio.sleep(0)
        if tp.partition == 1:
            raise StateLost("the disk is full")
        kept.extend([tp.partition] * len(rows))

    whole = asyncio.ensure_future(recovery.read([TopicPartition(changelog, 0), TopicPartition(changelog, 2)], add))
    with pytest.raises(StateLost, match="the disk is full"):
        await recovery.read([TopicPartition(changelog, 1)], add)
    await whole
    assert (kept.count(0), kept.count(2)) == (ROWS, 3)


async def test_a_position_row_is_recognised_only_in_the_first_changelog() -> None:
    """In another changelog its key is an ordinary row of that table."""
    first, second = TopicPartition("first", 0), TopicPartition("second", 0)
    store = MemoryStore({"one": {}, "two": {}})
    read = _ChangelogRows(store, {"one": first, "two": second})
    await read.add(second, {POSITION_KEY: b"no position"})
    assert (read.position, store.get("two", POSITION_KEY)) == (None, b"no position")
    await read.add(first, {POSITION_KEY: b"here", b"a": b"1"})
    await read.add(first, {b"b": b"2"})
    assert (read.position, sorted(store.keys("one"))) == (b"here", [b"a", b"b"])
