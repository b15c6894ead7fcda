"""Records made of what was fetched, held against what aiokafka itself makes of the same bytes."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, FetchError, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from ports.log import Header, Record
from streams.transport.kafka.records import Unpacked, give_records

TP = TopicPartition("commands", 3)
HEADERS: Sequence[Header] = [("type", b"start"), ("subject", b"")]
PRODUCER, OTHER = 7, 8
Step = tuple[Record | None, int]
"""A record, and where the next fetch would begin once it is taken; at the end without a record."""


def batch(
    base: int,
    offsets: Sequence[int],
    *,
    next_offset: int | None = None,
    producer: int = PRODUCER,
    transactional: bool = False,
    appended: int | None = None,
) -> bytes:
    """Records at `offsets` from `base` on; `next_offset` where compaction took the last ones."""
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
    """The batch as a broker keeps it: at its offset, with its append time where that is asked for."""
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


def test_what_a_transaction_aborted_is_left_out() -> None:
    data, aborted, begin = CASES["an aborted transaction between others"]
    seen = steps(Unpacked, data, aborted, begin, READ_COMMITTED)
    assert [record.offset for record, _ in seen if record is not None] == [0, 4]


def test_a_batch_that_was_damaged_is_refused_behind_the_sound_ones() -> None:
    damaged = bytearray(batch(2, [2, 3]))
    damaged[-3] ^= 1
    fetched = iter(fetched_as(Unpacked, batch(0, [0, 1]) + bytes(damaged)))
    assert [next(fetched).offset, next(fetched).offset] == [0, 1]
    with pytest.raises(CorruptRecordException):
        next(fetched)


def test_a_fetch_is_taken_in_parts() -> None:
    fetched = fetched_as(Unpacked, batch(0, range(5)))
    first = [record.offset for _, record in zip(range(2), fetched, strict=False)]
    assert [*first, *(record.offset for record in fetched)] == [0, 1, 2, 3, 4]


class Position:
    """What aiokafka knows of a partition that is read."""

    paused = False
    position = 0

    def consumed_to(self, offset: int) -> None:
        self.position = offset


def test_a_consumer_gives_records_at_most_as_many_as_asked() -> None:
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


def test_what_went_wrong_with_a_fetch_stays_as_it_is() -> None:
    fetcher = SimpleNamespace(_records=None, _prefetch_backoff=0.1)
    give_records(SimpleNamespace(_fetcher=fetcher), 0.002)
    error = FetchError(error=CorruptRecordException(), backoff=0.0)
    results: Any = fetcher._records
    results[TP] = error
    assert results[TP] is error


def test_what_is_taken_is_let_go_of_without_a_collection() -> None:
    """A worker collects seldom: megabytes of each fetch would stay in memory until then."""
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
