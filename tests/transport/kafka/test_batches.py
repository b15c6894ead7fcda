"""Produce batches as aiokafka's sender takes them, without a Kafka: what is filled up, what is begun anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.record.memory_records import MemoryRecords

from ports.log import LogFailed
from streams.transport.kafka.batches import Written, append_batches

TP, OTHER = TopicPartition("events", 0), TopicPartition("events", 1)
LARGEST = 2_000
"""Bytes of a batch here."""


class Producer:
    """A producer whose sender is the test."""

    def __init__(self) -> None:
        cluster = SimpleNamespace(leader_for_partition=lambda _tp: 1)
        self._message_accumulator = MessageAccumulator(cluster, LARGEST, 0, 60.0)

    def append(self, *records: Written, tp: TopicPartition = TP) -> list[asyncio.Future[Any]]:
        return append_batches(self, tp, records)

    def drained(self) -> Any:
        """The next batch that goes out for the partition."""
        nodes, _ = self._message_accumulator.drain_by_nodes(ignore_nodes=[])
        return nodes[1][TP]


@pytest.fixture
async def producer() -> Producer:
    return Producer()


def record(number: int, size: int = 10) -> Written:
    return b"k%d" % number, b"%0*d" % (size, number), [("n", b"%d" % number)] if number % 2 else ()


def keys(batch: Any) -> Sequence[bytes]:
    """Of what the broker would be sent, whose offsets must be one after the other."""
    records = MemoryRecords(bytes(batch.get_data_buffer())).next_batch()
    assert records is not None
    assert records.validate_crc()
    found = list(records)
    assert [one.offset for one in found] == list(range(batch.record_count)), "the broker refuses another count"
    return [one.key or b"" for one in found]


async def test_what_two_callers_send_goes_out_in_one_batch(producer: Producer) -> None:
    first, second = producer.append(record(0), record(1)), producer.append(record(2))
    batch = producer.drained()
    assert keys(batch) == [b"k0", b"k1", b"k2"]
    batch.done(base_offset=70)
    assert [(await ack).offset for ack in (*first, *second)] == [70, 70]


async def test_partitions_have_batches_of_their_own(producer: Producer) -> None:
    (one,), (other,) = producer.append(record(0)), producer.append(record(1), tp=OTHER)
    assert one is not other
    assert keys(producer.drained()) == [b"k0"]


async def test_a_full_batch_is_followed_by_another(producer: Producer) -> None:
    first = producer.append(record(0, 900))
    second = producer.append(*(record(number, 900) for number in range(1, 4)))
    assert len(second) == 2
    assert second[0] is first[0], "the rest of the first batch is filled"
    assert [keys(producer.drained()), keys(producer.drained())] == [[b"k0", b"k1"], [b"k2", b"k3"]]


async def test_a_record_too_large_for_a_batch_has_one_to_itself(producer: Producer) -> None:
    acks = producer.append(record(0), record(1, 3 * LARGEST), record(2))
    assert len(acks) == 3
    assert [keys(producer.drained()) for _ in acks] == [[b"k0"], [b"k1"], [b"k2"]]


async def test_what_is_under_way_is_not_changed(producer: Producer) -> None:
    producer.append(record(0))
    sent = producer.drained()
    producer.append(record(1))
    assert keys(sent) == [b"k0"]
    assert keys(producer.drained()) == [b"k1"]


async def test_what_is_sent_again_is_not_changed(producer: Producer) -> None:
    """Its sequence number and its count of records are known to the broker."""
    producer.append(record(0))
    sent = producer.drained()
    producer._message_accumulator.reenqueue(sent)
    producer.append(record(1))
    again = producer.drained()
    assert again is sent
    assert keys(again) == [b"k0"]
    assert keys(producer.drained()) == [b"k1"]


async def test_a_closed_batch_is_left_alone(producer: Producer) -> None:
    (first,) = producer.append(record(0))
    flushing = asyncio.ensure_future(producer._message_accumulator.flush_for_commit())
    await asyncio.sleep(0)
    (second,) = producer.append(record(1))
    batch = producer.drained()
    assert keys(batch) == [b"k0"]
    batch.done(base_offset=0)
    await flushing
    assert first.done()
    assert not second.done()


async def test_a_single_send_joins_the_batch_and_learns_its_own_offset(producer: Producer) -> None:
    """A front appends record by record through the same producer."""
    producer.append(record(0), record(1))
    alone = await producer._message_accumulator.add_message(TP, b"k2", b"v", timeout=1, timestamp_ms=0)
    producer.append(record(3))
    batch = producer.drained()
    assert keys(batch) == [b"k0", b"k1", b"k2", b"k3"]
    batch.done(base_offset=70)
    assert (await alone).offset == 72


async def test_a_record_that_cannot_be_written_leaves_a_sound_batch(producer: Producer) -> None:
    wrong: Any = (b"k2", b"v", [(None, b"a header without a name")])
    with pytest.raises(Exception, match=r"."):
        producer.append(record(0), record(1), wrong)
    producer.append(record(3))
    assert keys(producer.drained()) == [b"k0", b"k1", b"k3"]


async def test_a_producer_that_has_failed_says_so(producer: Producer) -> None:
    producer._message_accumulator.fail_all(KafkaConnectionError())
    with pytest.raises(LogFailed, match="producer_failed: KafkaConnectionError"):
        producer.append(record(0))
