"""What aiokafka has fetched becomes records of the contract at once: it makes two objects of each itself before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException

from ports.log import Record

_new = tuple.__new__
"""Of a named tuple, without the Python function that the class itself would call."""


def give_records(consumer: AIOKafkaConsumer, drain_seconds: float) -> None:
    """`getmany` of this consumer gives `contract.Record`s from now on; it has been started and has fetched nothing.

    The next fetch waits at most `drain_seconds` for what the last one brought to be taken.
    """
    fetcher = consumer._fetcher
    fetcher._prefetch_backoff = drain_seconds
    fetcher._records = _Results()


class _Results(OrderedDict[Any, Any]):
    """What has been fetched and not been taken, by partition, as the fetcher keeps it."""

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
            fetched._records_iterator = None  # it never began and would hold what was fetched until a collection
        super().__setitem__(tp, result)


class Unpacked(PartitionRecords):  # type: ignore[misc]
    """The records of one partition's fetch: the same ones, in the same steps of `next_fetch_offset`, as aiokafka's."""

    next_fetch_offset: int

    def __iter__(self) -> Iterator[Record]:
        """Goes on where the last iteration was left."""
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
                        continue  # a fetch begins with the batch that has its offset
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
            self.next_fetch_offset = batch.next_offset  # behind what compaction has taken from the batch's end, too

    def _was_aborted(self, batch: Any) -> bool:
        if self._isolation_level != READ_COMMITTED or batch.producer_id is None:
            return False
        self._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and self._contains_abort_marker(batch):
            self._aborted_producers.discard(batch.producer_id)
        return batch.is_transactional and batch.producer_id in self._aborted_producers
