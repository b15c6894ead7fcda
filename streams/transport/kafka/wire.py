"""Kafka's wire format, faster than aiokafka's own: produce batches, fetch requests with responses, fetched records.

aiokafka processes each record and each field separately. Here many records go into one produce batch, a fetch is
encoded and decoded a partition at a time, and fetched records become `Record` objects in one step. aiokafka uses no
fetch sessions: each request names every partition that is read, and its response contains every one.
"""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v11, FetchResponse_v11

from ports.log import Header, LogFailed, Record

# ---- produce batches

# Key, value and headers of a record to write; without a value it is a tombstone.
Written = tuple[bytes | None, bytes | None, Sequence[Header]]
_NO_HEADERS: list[Header] = []


def append_batches(
    producer: AIOKafkaProducer, tp: TopicPartition, records: Sequence[Written]
) -> list[asyncio.Future[Any]]:
    """Put records into the partition's batch that waits to be sent, then into new ones; return a future per batch.

    Other callers may wait for the same future, so it must not be cancelled. aiokafka's `send_batch` is not used, as it
    waits until the partition's last batch is drained before it queues another. The timestamp does not matter: topics
    have LogAppendTime.
    """
    accumulator = producer._message_accumulator
    if accumulator._exception is not None:
        failure = accumulator._exception
        raise LogFailed("producer_failed", type(failure).__name__) from failure
    futures: list[asyncio.Future[Any]] = []
    batch, taken = _waiting(accumulator, tp), 0
    while taken < len(records):
        if batch is None:
            batch = accumulator._append_batch(accumulator.create_builder(), tp)
            batch._drain_waiter.add_done_callback(retrieve)
        builder = batch._builder
        fitted = _fill(builder, records, taken)
        if fitted:
            futures.append(batch.future)
        taken += fitted
        if taken < len(records):
            builder.close()
            batch = None
    return futures


def _waiting(accumulator: Any, tp: TopicPartition) -> Any | None:
    """Return the partition's last batch if it was never sent and has room, so that added records stay in order."""
    batches = accumulator._batches.get(tp)
    if not batches:
        return None
    batch = batches[-1]
    return None if batch.retry_count or batch._builder.closed() else batch


def _fill(builder: Any, records: Sequence[Written], begin: int) -> int:
    """Append records from `begin` on and return the number that fitted. An empty batch has room for any record."""
    append = builder._builder.append
    count: int = builder._relative_offset
    number = count
    try:
        for key, value, headers in islice(records, begin, None):
            if append(number, 0, key, value, list(headers) if headers else _NO_HEADERS) is None:
                break
            number += 1
    finally:
        builder._relative_offset = number
    return number - count


def retrieve(future: asyncio.Future[Any]) -> None:
    """Retrieve a future's exception: aiokafka sets the same failure on several futures, and callers await only one."""
    if future.done() and not future.cancelled():
        future.exception()


# ---- fetch requests and responses

# Replica, waiting time, least and most bytes, isolation level, session, its epoch, number of topics.
_REQUEST = struct.Struct(">iiiibiii")
# Partition, leader epoch, offset, log start, most bytes.
_WANTED = struct.Struct(">iiqqi")
# Throttle time, error, session, number of topics.
_ANSWER = struct.Struct(">ihii")
# Partition, error, highwater, last stable offset, log start, number of aborted transactions.
_FOUND = struct.Struct(">ihqqqi")
_REPLICA_AND_SIZE = struct.Struct(">ii")
_ABORTED = struct.Struct(">qq")
_SHORT, _INT = struct.Struct(">h"), struct.Struct(">i")
# As a number: unknown. As a length: null.
_NONE = -1


class Fetch(FetchRequest):  # type: ignore[misc]
    """A fetch request that is encoded quickly in version 11, the last that aiokafka supports."""

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is not FetchRequest_v11:
            return super().build(request_struct_class)
        return _Packed(
            _NONE,
            self._max_wait_ms,
            self._min_bytes,
            self._max_bytes,
            self._isolation_level,
            0,
            _NONE,
            self._topics,
            [],
            self._rack_id,
        )


def packed(request: FetchRequest) -> Fetch:
    """Return the same request with quick encoding."""
    return Fetch(
        request._max_wait_ms,
        request._min_bytes,
        request._max_bytes,
        request._isolation_level,
        request._topics,
        request._rack_id,
    )


class _Answer(FetchResponse_v11):  # type: ignore[misc]
    @classmethod
    def decode(cls, data: BytesIO | bytes) -> _Answer:
        if isinstance(data, bytes):
            data = BytesIO(data)
        found, at = data.getvalue(), data.tell()
        throttle, error, session, count = _ANSWER.unpack_from(found, at)
        at += _ANSWER.size
        topics = []
        for _ in range(count):
            (length,) = _SHORT.unpack_from(found, at)
            at += _SHORT.size
            topic = found[at : at + length].decode()
            at += length
            (some,) = _INT.unpack_from(found, at)
            at += _INT.size
            partitions = []
            for _ in range(some):
                partition, at = _partition(found, at)
                partitions.append(partition)
            topics.append((topic, partitions))
        return cls(throttle, error, session, topics)


def _partition(found: bytes, at: int) -> tuple[tuple[Any, ...], int]:
    """Decode one partition of a response; return it with the index behind it. Raises ValueError for truncated bytes."""
    partition, error, highwater, stable, start, count = _FOUND.unpack_from(found, at)
    at += _FOUND.size
    aborted = None
    if count != _NONE:
        end = at + count * _ABORTED.size
        aborted = list(_ABORTED.iter_unpack(found[at:end]))
        at = end
    replica, size = _REPLICA_AND_SIZE.unpack_from(found, at)
    at += _REPLICA_AND_SIZE.size
    records = None
    if size != _NONE:
        records = found[at : at + size]
        if len(records) != size:
            raise ValueError(f"fetch answer cut off: {len(records)} of {size} bytes of partition {partition}")
        at += size
    return (partition, error, highwater, stable, start, aborted, replica, records), at


class _Packed(FetchRequest_v11):  # type: ignore[misc]
    RESPONSE_TYPE = _Answer
    replica_id: int
    max_wait_time: int
    min_bytes: int
    max_bytes: int
    isolation_level: int
    session_id: int
    session_epoch: int
    topics: list[tuple[str, list[tuple[int, int, int]]]]
    """By topic: partition, offset and maximum of bytes."""
    rack_id: str

    def encode(self) -> bytes:
        head = _REQUEST.pack(
            self.replica_id,
            self.max_wait_time,
            self.min_bytes,
            self.max_bytes,
            self.isolation_level,
            self.session_id,
            self.session_epoch,
            len(self.topics),
        )
        parts = [head]
        for topic, partitions in self.topics:
            name = topic.encode()
            parts += [_SHORT.pack(len(name)), name, _INT.pack(len(partitions))]
            parts += [_WANTED.pack(number, _NONE, offset, _NONE, most) for number, offset, most in partitions]
        rack = self.rack_id.encode()
        parts += [_INT.pack(0), _SHORT.pack(len(rack)), rack]  # an empty list of forgotten topics
        return b"".join(parts)


# ---- fetched records

# Makes a named tuple without calling the Python function of its class.
_new = tuple.__new__


def give_records(consumer: AIOKafkaConsumer, drain_seconds: float) -> None:
    """Let `getmany` of this consumer return `Record` objects. It must be started and must not have fetched yet.

    The next fetch waits at most `drain_seconds` until the records of the last one are taken.
    """
    fetcher = consumer._fetcher
    fetcher._prefetch_backoff = drain_seconds
    fetcher._records = _Results()


class _Results(OrderedDict[Any, Any]):
    """The fetcher's dict of fetched records that are not taken yet, by partition."""

    def __setitem__(self, tp: Any, result: Any) -> None:
        if type(result) is FetchResult:
            fetched = result._partition_records
            result._partition_records = Unpacked(
                tp,
                fetched._records,
                fetched._aborted_transactions,
                fetched.next_fetch_offset,
                None,
                None,
                fetched._check_crcs,
                fetched._isolation_level,
            )
            fetched._records_iterator = None  # unused; it would keep the fetched bytes until a garbage collection
        super().__setitem__(tp, result)


class Unpacked(PartitionRecords):  # type: ignore[misc]
    """Fetched records of one partition: the same records and steps of `next_fetch_offset` as in aiokafka."""

    next_fetch_offset: int

    def __iter__(self) -> Iterator[Record]:
        """Continue where the last iteration stopped."""
        records: Iterator[Record] = self._records_iterator
        return records

    def _unpack_records(self) -> Iterator[Record]:
        topic, partition = self._tp
        fetched = self._records
        while fetched.has_next():
            batch = fetched.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if not (self._was_aborted(batch) or batch.is_control_batch):
                for record in batch:
                    offset = record.offset
                    if offset < self.next_fetch_offset:
                        continue  # a response begins with the batch that contains the offset
                    self.next_fetch_offset = offset + 1
                    values = (
                        topic,
                        partition,
                        offset,
                        record.timestamp,
                        record.key,
                        record.value,
                        tuple(record.headers),
                    )
                    yield _new(Record, values)
            self.next_fetch_offset = (
                batch.next_offset
            )  # also behind records that compaction removed from the batch's end

    def _was_aborted(self, batch: Any) -> bool:
        if self._isolation_level != READ_COMMITTED or batch.producer_id is None:
            return False
        self._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and self._contains_abort_marker(batch):
            self._aborted_producers.discard(batch.producer_id)
        return batch.is_transactional and batch.producer_id in self._aborted_producers
