"""Kafka's wire format compared with aiokafka's own: records, fetches with responses, produce batches."""

from __future__ import annotations

import asyncio
import gc
import struct
import weakref
from collections.abc import Sequence
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, FetchError, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException, KafkaConnectionError
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v10, FetchRequest_v11, FetchResponse_v11
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from ports.log import Header, LogFailed, Record
from streams.transport.kafka.wire import Unpacked, Written, append_batches, give_records, packed

# ---- records

TP = TopicPartition("commands", 3)
HEADERS: Sequence[Header] = [("type", b"start"), ("subject", b"")]
PRODUCER, OTHER = 7, 8
# A record with the offset of the next fetch after it; the last step has no record.
Step = tuple[Record | None, int]


def batch(
    base: int,
    offsets: Sequence[int],
    *,
    next_offset: int | None = None,
    producer: int = PRODUCER,
    transactional: bool = False,
    appended: int | None = None,
) -> bytes:
    """Encode records at `offsets` from `base` on; `next_offset` if compaction removed the last ones."""
    builder = DefaultRecordBatchBuilder(2, 0, int(transactional), producer, 0, 0, 1 << 20)
    for offset in offsets:
        value = None if offset % 4 == 3 else b"value %d" % offset
        builder.append(offset - base, 1000 + offset, b"key", value, list(HEADERS) if offset % 2 else [])
    last = (next_offset or offsets[-1] + 1) - base - 1
    return _sealed(builder.build(), base, last_delta=last, appended=appended)


def control(base: int, producer: int, *, abort: bool) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 1, producer, 0, 0, 1 << 20)
    builder.append(0, 1000, struct.pack(">hh", 0, 0 if abort else 1), b"\0" * 6, [])
    return _sealed(builder.build(), base, flags=0x20)


def _sealed(raw: bytearray, base: int, *, last_delta: int = 0, flags: int = 0, appended: int | None = None) -> bytes:
    """Return the batch as stored by a broker: at its offset, and with an append time if given."""
    struct.pack_into(">q", raw, 0, base)
    (attributes,) = struct.unpack_from(">h", raw, 21)
    struct.pack_into(">h", raw, 21, attributes | flags | (0x08 if appended is not None else 0))
    struct.pack_into(">i", raw, 23, last_delta)
    if appended is not None:
        struct.pack_into(">q", raw, 35, appended)
    struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
    return bytes(raw)


def fetched_as(
    kind: type[PartitionRecords], data: bytes, aborted: Any = (), begin: int = 0, level: int = READ_COMMITTED
) -> Any:
    return kind(
        TP,
        MemoryRecords(data),
        aborted,
        begin,
        key_deserializer=None,
        value_deserializer=None,
        check_crcs=True,
        isolation_level=level,
    )


def steps(kind: type[PartitionRecords], data: bytes, aborted: Any, begin: int, level: int) -> list[Step]:
    fetched = fetched_as(kind, data, aborted, begin, level)
    seen: list[Step] = []
    for r in fetched:
        record = Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
        seen.append((record, fetched.next_fetch_offset))
    return [*seen, (None, fetched.next_fetch_offset)]


CASES = {
    "several batches": (batch(0, range(5)) + batch(5, [5]), [], 0),
    "a fetch that begins within a batch": (batch(10, range(10, 20)), [], 14),
    "a fetch that begins behind the records of a batch": (batch(10, [10, 11], next_offset=20), [], 15),
    "what compaction left": (batch(10, [12, 17], next_offset=30) + batch(40, [41]), [], 10),
    "the log's append time": (batch(0, range(3), appended=99_000), [], 0),
    "a committed transaction": (
        batch(0, [0, 1], transactional=True) + control(2, PRODUCER, abort=False) + batch(3, [3]),
        [],
        0,
    ),
    "an aborted transaction between others": (
        batch(0, [0], transactional=True, producer=OTHER)
        + batch(1, [1, 2], transactional=True)
        + control(3, PRODUCER, abort=True)
        + batch(4, [4], transactional=True)
        + control(5, PRODUCER, abort=False)
        + control(6, OTHER, abort=False),
        [(PRODUCER, 1)],
        0,
    ),
    "two aborted transactions of one producer": (
        batch(0, [0], transactional=True)
        + control(1, PRODUCER, abort=True)
        + batch(2, [2], transactional=True)
        + control(3, PRODUCER, abort=True)
        + batch(4, [4]),
        [(PRODUCER, 2), (PRODUCER, 0)],
        0,
    ),
}


@pytest.mark.parametrize("level", [READ_COMMITTED, READ_UNCOMMITTED], ids=["committed", "uncommitted"])
@pytest.mark.parametrize("case", CASES)
def test_the_records_and_the_offsets_are_those_of_aiokafka(case: str, level: int) -> None:
    data, aborted, begin = CASES[case]
    assert steps(Unpacked, data, aborted, begin, level) == steps(PartitionRecords, data, aborted, begin, level)


def test_records_of_an_aborted_transaction_are_left_out() -> None:
    data, aborted, begin = CASES["an aborted transaction between others"]
    seen = steps(Unpacked, data, aborted, begin, READ_COMMITTED)
    assert [record.offset for record, _ in seen if record is not None] == [0, 4]


def test_a_damaged_batch_is_refused_after_the_sound_ones() -> None:
    damaged = bytearray(batch(2, [2, 3]))
    damaged[-3] ^= 1
    fetched = iter(fetched_as(Unpacked, batch(0, [0, 1]) + bytes(damaged)))
    assert [next(fetched).offset, next(fetched).offset] == [0, 1]
    with pytest.raises(CorruptRecordException):
        next(fetched)


def test_a_fetch_can_be_taken_in_parts() -> None:
    fetched = fetched_as(Unpacked, batch(0, range(5)))
    first = [record.offset for _, record in zip(range(2), fetched, strict=False)]
    assert [*first, *(record.offset for record in fetched)] == [0, 1, 2, 3, 4]


class Position:
    """aiokafka's state of a partition that is read."""

    paused = False
    position = 0

    def consumed_to(self, offset: int) -> None:
        self.position = offset


def test_a_consumer_returns_at_most_the_requested_number_of_records() -> None:
    position = Position()
    assignment = SimpleNamespace(active=True, state_value=lambda _tp: position)
    fetcher = SimpleNamespace(_records=None, _prefetch_backoff=0.1)
    give_records(SimpleNamespace(_fetcher=fetcher), 0.002)
    fetched = fetched_as(PartitionRecords, batch(0, range(5)))
    result = FetchResult(TP, assignment=assignment, partition_records=fetched, backoff=0.0)
    results: Any = fetcher._records
    results[TP] = result
    taken = [result.getall(2), result.getall(2), result.getall(2)]
    assert [[record.offset for record in part] for part in taken] == [[0, 1], [2, 3], [4]]
    assert {type(record) for part in taken for record in part} == {Record}
    assert (position.position, result.has_more()) == (5, False)
    assert fetcher._prefetch_backoff == 0.002


def test_the_error_of_a_fetch_is_passed_on_unchanged() -> None:
    fetcher = SimpleNamespace(_records=None, _prefetch_backoff=0.1)
    give_records(SimpleNamespace(_fetcher=fetcher), 0.002)
    error = FetchError(error=CorruptRecordException(), backoff=0.0)
    results: Any = fetcher._records
    results[TP] = error
    assert results[TP] is error


def test_taken_records_are_freed_without_a_garbage_collection() -> None:
    """A worker collects garbage rarely; until then megabytes of each fetch would stay in memory."""
    position = Position()
    fetcher = SimpleNamespace(_records=None, _prefetch_backoff=0.1)
    give_records(SimpleNamespace(_fetcher=fetcher), 0.002)
    fetched = fetched_as(PartitionRecords, batch(0, range(5)))
    assignment = SimpleNamespace(active=True, state_value=lambda _tp: position)
    result = FetchResult(TP, assignment=assignment, partition_records=fetched, backoff=0.0)
    results: Any = fetcher._records
    gc.collect()
    gc.disable()
    try:
        results[TP] = result
        kept = [weakref.ref(fetched), weakref.ref(result._partition_records)]
        del fetched
        result.getall(2)
        result.getall()
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


# ---- fetches

TOPICS = [("fleet.commands", [(0, 1, 2), (11, 2**40, 5 * 1024 * 1024)]), ("fleet.steps.\u00fc", [(3, 0, 1)])]
REQUESTS = {
    "two topics": FetchRequest(20, 1, 52_428_800, 1, TOPICS),
    "in a rack": FetchRequest(500, 7, 100, 0, TOPICS, rack_id="b"),
    "nothing": FetchRequest(20, 1, 100, 1, []),
}
RECORDS = bytes(range(256))
ANSWERS = {
    "nothing": FetchResponse_v11(0, 0, 0, []),
    "records, none, and null": FetchResponse_v11(
        7,
        3,
        2,
        [
            ("fleet.commands", [(0, 0, 10, 9, 1, [], -1, RECORDS), (1, 1, -1, -1, -1, None, 4, None)]),
            ("fleet.steps.\u00fc", [(11, 0, 2**40, 2**40, 0, [], -1, b"")]),
        ],
    ),
    "aborted transactions": FetchResponse_v11(
        0, 0, 0, [("changelog", [(2, 0, 9, 9, 0, [(1_000, 4), (1_001, 2**33)], -1, RECORDS)])]
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("version", [FetchRequest_v10, FetchRequest_v11])
def test_a_request_has_the_same_bytes_as_in_aiokafka(name: str, version: type[FetchRequest_v11]) -> None:
    request = REQUESTS[name]
    assert packed(request).topics == request.topics
    assert packed(request).build(version).encode() == request.build(version).encode()


def test_version_11_is_the_last() -> None:
    """A later version would be used, and encoded field by field again."""
    ours = packed(REQUESTS["two topics"]).prepare({1: (4, 99)})
    assert ours.API_VERSION == 11
    assert ours.encode() == REQUESTS["two topics"].prepare({1: (4, 99)}).encode()


@pytest.mark.parametrize("name", ANSWERS)
def test_a_response_is_decoded_as_by_aiokafka(name: str) -> None:
    reader = packed(REQUESTS["two topics"]).build(FetchRequest_v11).RESPONSE_TYPE
    frame = b"head" + ANSWERS[name].encode()
    data, theirs = BytesIO(frame), BytesIO(frame)
    data.seek(4)
    theirs.seek(4)
    answer = reader.decode(data)
    assert answer == FetchResponse_v11.decode(theirs) == ANSWERS[name]
    assert answer.API_VERSION == 11


def test_a_truncated_response_is_refused() -> None:
    reader = packed(REQUESTS["two topics"]).build(FetchRequest_v11).RESPONSE_TYPE
    with pytest.raises(ValueError, match="fetch answer cut off: 255 of 256 bytes of partition 2"):
        reader.decode(ANSWERS["aborted transactions"].encode()[:-1])


# ---- produce batches

EVENTS, OTHER_EVENTS = TopicPartition("events", 0), TopicPartition("events", 1)
# Bytes of the largest batch in these tests.
LARGEST = 2_000


class Producer:
    """A producer without a sender; the test drains it."""

    def __init__(self) -> None:
        cluster = SimpleNamespace(leader_for_partition=lambda _tp: 1)
        self._message_accumulator = MessageAccumulator(cluster, LARGEST, 0, 60.0)

    def append(self, *records: Written, tp: TopicPartition = EVENTS) -> list[asyncio.Future[Any]]:
        return append_batches(self, tp, records)

    def drained(self) -> Any:
        """Return the next batch of the partition."""
        nodes, _ = self._message_accumulator.drain_by_nodes(ignore_nodes=[])
        return nodes[1][EVENTS]


@pytest.fixture
async def producer() -> Producer:
    return Producer()


def record(number: int, size: int = 10) -> Written:
    return b"k%d" % number, b"%0*d" % (size, number), [("n", b"%d" % number)] if number % 2 else ()


def keys(batch: Any) -> Sequence[bytes]:
    """Return the keys of the encoded batch, and check that its offsets are consecutive."""
    records = MemoryRecords(bytes(batch.get_data_buffer())).next_batch()
    assert records is not None
    assert records.validate_crc()
    found = list(records)
    assert [one.offset for one in found] == list(range(batch.record_count)), "the broker refuses another count"
    return [one.key or b"" for one in found]


async def test_records_of_two_callers_go_into_one_batch(producer: Producer) -> None:
    first, second = producer.append(record(0), record(1)), producer.append(record(2))
    batch = producer.drained()
    assert keys(batch) == [b"k0", b"k1", b"k2"]
    batch.done(base_offset=70)
    assert [(await ack).offset for ack in (*first, *second)] == [70, 70]


async def test_partitions_have_batches_of_their_own(producer: Producer) -> None:
    (one,), (other,) = producer.append(record(0)), producer.append(record(1), tp=OTHER_EVENTS)
    assert one is not other
    assert keys(producer.drained()) == [b"k0"]


async def test_a_full_batch_is_followed_by_another(producer: Producer) -> None:
    first = producer.append(record(0, 900))
    second = producer.append(*(record(number, 900) for number in range(1, 4)))
    assert len(second) == 2
    assert second[0] is first[0], "the rest of the first batch is filled"
    assert [keys(producer.drained()), keys(producer.drained())] == [[b"k0", b"k1"], [b"k2", b"k3"]]


async def test_a_record_too_large_for_a_batch_gets_a_batch_of_its_own(producer: Producer) -> None:
    acks = producer.append(record(0), record(1, 3 * LARGEST), record(2))
    assert len(acks) == 3
    assert [keys(producer.drained()) for _ in acks] == [[b"k0"], [b"k1"], [b"k2"]]


async def test_a_batch_in_flight_is_not_changed(producer: Producer) -> None:
    producer.append(record(0))
    sent = producer.drained()
    producer.append(record(1))
    assert keys(sent) == [b"k0"]
    assert keys(producer.drained()) == [b"k1"]


async def test_a_batch_that_is_sent_again_is_not_changed(producer: Producer) -> None:
    """The broker may know its sequence number and number of records."""
    producer.append(record(0))
    sent = producer.drained()
    producer._message_accumulator.reenqueue(sent)
    producer.append(record(1))
    again = producer.drained()
    assert again is sent
    assert keys(again) == [b"k0"]
    assert keys(producer.drained()) == [b"k1"]


async def test_a_closed_batch_is_not_changed(producer: Producer) -> None:
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
    """Clients' commands are appended one by one through the same producer."""
    producer.append(record(0), record(1))
    alone = await producer._message_accumulator.add_message(EVENTS, b"k2", b"v", timeout=1, timestamp_ms=0)
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


async def test_a_failed_producer_raises_log_failed(producer: Producer) -> None:
    producer._message_accumulator.fail_all(KafkaConnectionError())
    with pytest.raises(LogFailed, match="producer_failed: KafkaConnectionError"):
        producer.append(record(0))
