"""Records in as few produce batches as possible, past aiokafka's functions of a record."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from ports.log import Header, LogFailed

Written = tuple[bytes | None, bytes | None, Sequence[Header]]
"""Key, value and headers of a record to be written; without a value it deletes."""
_NO_HEADERS: list[Header] = []


def append_batches(
    producer: AIOKafkaProducer, tp: TopicPartition, records: Sequence[Written]
) -> list[asyncio.Future[Any]]:
    """Put records into the batch of their partition that still waits to be sent, then into new ones.

    One future per batch: others may wait for it too, so it must not be cancelled. Past `send_batch`, which would wait
    for the partition's last batch to be drained before it queues another. The timestamp does not matter: topics have
    LogAppendTime.
    """
    accumulator = producer._message_accumulator
    if accumulator._exception is not None:
        raise LogFailed(f"producer_failed: {type(accumulator._exception).__name__}") from accumulator._exception
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
    """The last batch of a partition that was never sent and has room, so that what is added comes behind all others."""
    batches = accumulator._batches.get(tp)
    if not batches:
        return None
    batch = batches[-1]
    return None if batch.retry_count or batch._builder.closed() else batch


def _fill(builder: Any, records: Sequence[Written], begin: int) -> int:
    """Append records from `begin` on; returns how many there was room for. An empty batch has room for any record."""
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
    """Look at a future's exception, which its owner does not: aiokafka tells the same failure on several futures."""
    if future.done() and not future.cancelled():
        future.exception()
