"""Records are the same on both logs: order, headers, timestamps, sizes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable

import pytest
from aiokafka import AIOKafkaProducer

from ports.log import LARGEST_RECORD_BYTES, AgentSpec, Batch, Record, RecordTooLarge
from streams.transport.app import CeremonyApp
from tests.transport.conformance.harness import (
    PARTITIONS,
    Place,
    at_least,
    beside,
    eventually,
    everything,
    load,
    serving,
)

# Bytes beside key, value and headers that count as part of a record.
FRAMING = 128


async def send_with_timestamp(place: Place, app: CeremonyApp, topic: str, claimed: float) -> None:
    """Send a record with a wrong timestamp: on Kafka without the driver, on the embedded log by Faust's producer."""
    if place.embedded:
        await app.producer.send_and_wait(topic, b"k", b"liar", 0, claimed, None)
        return
    producer = AIOKafkaProducer(bootstrap_servers=place.url.removeprefix("kafka://"))
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"liar", b"k", partition=0, timestamp_ms=int(claimed * 1000))
    finally:
        await producer.stop()


async def test_records_of_a_partition_keep_their_order(place: Place) -> None:
    """An agent gets the records of each partition in offset order, without a gap; its effects keep that order."""
    # specification 18.3, 18.12
    seen: list[Record] = []

    async def forward(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            assert {record.partition for record in batch} == {batch.partition}
            seen.extend(batch)
            for record in batch:
                batch.send(place.topic("out"), record.key, record.value or b"")

    values = [(b"k%d" % (i % 50), b"%d" % i) for i in range(2000)]
    async with serving(place.app(), (AgentSpec("forward", place.topic("in"), batch=33), forward)) as app:
        await load(app, place.topic("in"), values)
        await eventually(lambda: len(seen) == len(values))
        for partition in range(PARTITIONS):
            offsets = [record.offset for record in seen if record.partition == partition]
            assert offsets == list(range(len(offsets)))
        for key in {key for key, _ in values}:
            assert [r.value for r in seen if r.key == key] == [value for k, value in values if k == key]
        out = await at_least(app, place.topic("out"), len(values))
        for partition in range(PARTITIONS):
            assert [r.value for r in out if r.partition == partition] == [
                r.value for r in seen if r.partition == partition
            ]


async def test_headers_arrive_as_they_were_sent(place: Place) -> None:
    """With order, repetition, empty and binary values, from `append` to the agent and in the agent's effects."""
    headers = [("correlation-id", "é".encode()), ("n", b""), ("n", bytes(range(256)))]
    seen: list[Record] = []

    async def forward(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                seen.append(record)
                batch.send(place.topic("out"), record.key, record.value or b"", record.headers, partition=3)

    async with serving(place.app(), (AgentSpec("forward", place.topic("in")), forward)) as app:
        await app.commit_log.append(place.topic("in"), 1, b"k", b"v", headers)
        await app.commit_log.append(place.topic("in"), 1, None, b"none")
        await eventually(lambda: len(seen) == 2)
        assert [(r.key, r.value, list(r.headers)) for r in seen] == [(b"k", b"v", headers), (None, b"none", [])]
        out = await at_least(app, place.topic("out"), 2)
        assert [(r.partition, r.offset, list(r.headers)) for r in out] == [(3, 0, headers), (3, 1, [])]


async def test_timestamps_are_the_logs(place: Place) -> None:
    """A position has the record's timestamp, monotone per partition; a sender's own timestamp is ignored."""
    # specification 18.6, 18.12
    topic = place.topic("in")
    before = int(time.time() * 1000)
    async with beside(place) as app:
        positions = [await app.commit_log.append(topic, i % 2, None, b"%d" % i) for i in range(20)]
        for claimed in (time.time() - 30 * 24 * 3600, time.time() + 30 * 24 * 3600):
            await send_with_timestamp(place, app, topic, claimed)
        await app.commit_log.append(topic, 0, None, b"last")
        records = await everything(app, topic)
    after = int(time.time() * 1000)
    assert len(records) == 23
    stamps = {(r.partition, r.offset): r.timestamp for r in records}
    assert [stamps[p.partition, p.offset] for p in positions] == [p.timestamp for p in positions]
    assert all(before <= record.timestamp <= after for record in records)
    for partition in range(2):
        mine = [r.timestamp for r in records if r.partition == partition]
        assert mine == sorted(mine)


async def test_an_offset_is_found_by_its_time(place: Place) -> None:
    """The first record at that time or later; the log end after the newest, 0 before the oldest."""
    # specification 18.12
    topic = place.topic("in")
    async with beside(place) as app:
        positions = []
        for number in range(30):
            positions.append(await app.commit_log.append(topic, 1, None, b"%d" % number))
            await asyncio.sleep(0.002)
        for position in positions:
            first = next(one.offset for one in positions if one.timestamp >= position.timestamp)
            assert await app.commit_log.offset_at(topic, 1, position.timestamp) == first
        assert await app.commit_log.offset_at(topic, 1, 0) == 0
        assert await app.commit_log.offset_at(topic, 1, positions[-1].timestamp + 1) == 30
        assert await app.commit_log.offset_at(topic, 2, 0) == 0


async def test_the_largest_record_is_accepted_and_one_byte_more_is_refused(place: Place) -> None:
    """From outside and from an agent, RecordTooLarge is raised before anything is sent; the partition still works."""
    # specification 20.1
    topic = place.topic("in")
    key = b"k"
    largest = b"x" * (LARGEST_RECORD_BYTES - FRAMING - len(key))
    refused: list[str] = []

    async def grow(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                try:
                    batch.send(place.topic("out"), key, largest + b"x")
                except RecordTooLarge as error:
                    refused.append(str(error))
                batch.send(place.topic("out"), key, record.value or b"")

    async with serving(place.app(), (AgentSpec("grow", topic), grow)) as app:
        await app.commit_log.append(topic, 0, key, largest)
        with pytest.raises(RecordTooLarge, match=f"record_too_large: {LARGEST_RECORD_BYTES + 1} bytes"):
            await app.commit_log.append(topic, 0, key, largest + b"x")
        assert (await app.commit_log.append(topic, 0, key, b"after")).offset == 1
        await eventually(lambda: len(refused) == 2)
        assert all(message.startswith("record_too_large") for message in refused)
        out = await at_least(app, place.topic("out"), 2)
        assert [len(r.value or b"") for r in out] == [len(largest), 5]


async def test_many_large_effects_of_one_batch_are_split(place: Place) -> None:
    """More than a mebibyte for one partition is sent in order, in several produce batches."""

    async def burst(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for _ in batch:
                for i in range(40):
                    batch.send(place.topic("out"), b"k", b"%02d" % i + b"x" * 100_000)

    async with serving(place.app(), (AgentSpec("burst", place.topic("in")), burst)) as app:
        await app.commit_log.append(place.topic("in"), 2, b"k", b"go")
        found = await at_least(app, place.topic("out"), 40)
        assert [(r.value or b"")[:2] for r in found] == [b"%02d" % i for i in range(40)]
