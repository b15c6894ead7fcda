"""A bare aiokafka loop that does what one step costs the log: reads two records, updates a row, writes three.

Run as a process of its own (`python -m tests.benchmarks.bare`, options as JSON on stdin, the answer as JSON on
stdout). It preloads as many outcomes and requests as there are steps, of the sizes the engine's have. Then it reads
both topics; for each outcome it replaces the row of its key in a dict and writes a request and an event, for each
request it writes an outcome. It decodes and encodes nothing. All writes are acknowledged by the end, and offsets are
committed every half second: what any consumer that writes would do.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bridge.clock import HostClock
from streams.transport.contract import Out, TopicSpec
from streams.transport.kafka_batches import append_batches
from streams.transport.kafka_log import KafkaLog
from tests.benchmarks.sizes import RecordSize, StepRecords

KEYS = 2000
KEPT_MS = 3_600_000
RECORDS_PER_STEP = 5
BATCH_BYTES = 900_000


class Options(msgspec.Struct, kw_only=True):
    """What is to be measured."""

    bootstrap: str
    name: str
    """Prefix of its topics and group."""
    steps: int
    partitions: int
    batches: bool
    """Write with `create_batch`/`send_batch`, one future per batch, instead of `send`, one per record."""
    records: StepRecords
    topic_config: dict[str, str] = {}


class Measured(msgspec.Struct):
    """What was measured."""

    seconds: float
    cpu_seconds: float


Template = tuple[bytes, list[tuple[str, bytes]]]
Write = Callable[[dict[TopicPartition, list[Out]]], Awaitable[None]]


async def measure(options: Options) -> Measured:
    """Preload, then time the loop."""
    inputs = [f"{options.name}.in.outcomes", f"{options.name}.in.requests"]
    await _prepare(options, inputs)
    consumer = AIOKafkaConsumer(
        *inputs,
        bootstrap_servers=options.bootstrap,
        group_id=options.name,
        auto_offset_reset="earliest",
        auto_commit_interval_ms=500,
        fetch_max_wait_ms=20,
        max_partition_fetch_bytes=5 * 1024 * 1024,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=options.bootstrap,
        acks="all",
        enable_idempotence=True,
        linger_ms=0 if options.batches else 5,
        max_batch_size=BATCH_BYTES,
    )
    await producer.start()
    await consumer.start()
    try:
        await consumer.getmany(timeout_ms=0)
        while not consumer.assignment():
            await asyncio.sleep(0.05)
        write = _batches(producer) if options.batches else _records(producer)
        return await _loop(options, consumer, write)
    finally:
        await consumer.stop()
        await producer.stop()


async def _loop(options: Options, consumer: AIOKafkaConsumer, write: Write) -> Measured:
    rows: dict[bytes, tuple[int, int]] = {}
    request, event, outcome = map(_template, (options.records.request, options.records.event, options.records.outcome))
    outcomes = f"{options.name}.in.outcomes"
    left = 2 * options.steps
    began, cpu = time.perf_counter(), time.process_time()
    while left:
        for tp, records in (await consumer.getmany(timeout_ms=1000, max_records=2000)).items():
            left -= len(records)
            if tp.topic == outcomes:
                for record in records:
                    rows[record.key] = (rows.get(record.key, (0, 0))[0] + 1, record.offset)
                wanted = {"out.requests": request, "out.events": event}
            else:
                wanted = {"out.outcomes": outcome}
            await write(
                {
                    TopicPartition(f"{options.name}.{topic}", tp.partition): [
                        Out(record.key, value, headers) for record in records
                    ]
                    for topic, (value, headers) in wanted.items()
                }
            )
    await write({})
    return Measured(time.perf_counter() - began, time.process_time() - cpu)


def _records(producer: AIOKafkaProducer) -> Write:
    """One `send` a record, as the client's documentation does it."""

    async def write(records: dict[TopicPartition, list[Out]]) -> None:
        for tp, some in records.items():
            for record in some:
                await producer.send(tp.topic, record.value, record.key, tp.partition, headers=record.headers)
        if not records:
            await producer.flush()

    return write


def _batches(producer: AIOKafkaProducer) -> Write:
    """One produce batch for what was read of a partition at once."""

    async def write(records: dict[TopicPartition, list[Out]]) -> None:
        for tp, some in records.items():
            builder = producer.create_batch()
            for record in some:
                fits = builder.append(timestamp=None, key=record.key, value=record.value, headers=record.headers)
                if fits is None:
                    await producer.send_batch(builder, tp.topic, partition=tp.partition)
                    builder = producer.create_batch()
                    builder.append(timestamp=None, key=record.key, value=record.value, headers=record.headers)
            await producer.send_batch(builder, tp.topic, partition=tp.partition)
        if not records:
            await producer.flush()

    return write


def _template(size: RecordSize) -> Template:
    return b"x" * size.value, [(name, b"x" * length) for name, length in size.headers]


async def _prepare(options: Options, inputs: Sequence[str]) -> None:
    """Create the topics, and append what is to be read."""
    log = KafkaLog([options.bootstrap], HostClock(), topic_config=options.topic_config)
    await log.start()
    try:
        outputs = [f"{options.name}.out.{what}" for what in ("outcomes", "requests", "events")]
        await log.create([TopicSpec(topic, options.partitions, KEPT_MS) for topic in (*inputs, *outputs)])
        for topic, size in zip(inputs, (options.records.outcome, options.records.request), strict=True):
            await _preload(log, topic, size, options)
    finally:
        await log.stop()


async def _preload(log: KafkaLog, topic: str, size: RecordSize, options: Options) -> None:
    value, headers = _template(size)
    for partition in range(options.partitions):
        mine = range(partition, options.steps, options.partitions)
        records = [Out(b"%0*d" % (size.key, number % KEYS), value, headers) for number in mine]
        await asyncio.gather(*append_batches(log.producer, TopicPartition(topic, partition), records))


def main() -> None:
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=Options)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(measure(options))))


if __name__ == "__main__":
    main()
