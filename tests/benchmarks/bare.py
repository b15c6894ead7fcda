"""A bare aiokafka loop with the reads and writes of a ceremony: it reads commands, replaces a row, writes the rest.

Run as a process of its own (`python -m tests.benchmarks.bare`, options as JSON on stdin, the answer as JSON on
stdout), which starts one loop, or several that share the partitions, each a process. It preloads the records that the
engine would read of as many ceremonies, in the number and sizes of the engine's. Then the loops read them: for each
command they replace the row of its key in a dict and write its share of the events and requests, for each request its
outcome. They decode and encode nothing. All writes are acknowledged by the end, and offsets are committed every half
second, as any consumer that writes would do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bridge.clock import HostClock
from ports.log import TopicSpec
from streams.transport.kafka.log import KafkaLog
from streams.transport.kafka.wire import append_batches
from streams.transport.partition.backend import NewRecord
from tests.benchmarks.bare_work import Options, Output, ceremonies_of, template
from tests.benchmarks.sizes import Records

KEPT_MS = 3_600_000
GO = b"go\n"
BATCH_BYTES = 900_000


class Measured(msgspec.Struct):
    """Measurements of one loop or of all."""

    began: float
    """Wall clock."""
    ended: float
    cpu_seconds: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


Write = Callable[[dict[TopicPartition, list[NewRecord]]], Awaitable[None]]


async def measure(options: Options) -> Measured:
    """Preload, then time the loops together, from the first begin to the last end."""
    await _prepare(options)
    loops = [await _spawn(msgspec.structs.replace(options, share=share)) for share in range(options.processes)]
    try:
        for loop in loops:
            await _line(loop)
        for loop in loops:
            if loop.stdin is not None:
                loop.stdin.write(GO)
        found = [msgspec.json.decode(await _line(loop), type=Measured) for loop in loops]
    finally:
        for loop in loops:
            with contextlib.suppress(ProcessLookupError):
                loop.kill()
            await loop.wait()
    return together(found)


def together(found: Sequence[Measured]) -> Measured:
    return Measured(
        min(one.began for one in found), max(one.ended for one in found), sum(one.cpu_seconds for one in found)
    )


async def _spawn(options: Options) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    loop = await asyncio.create_subprocess_exec(sys.executable, "-m", __spec__.name, stdin=pipe, stdout=pipe)
    if loop.stdin is not None:
        loop.stdin.write(msgspec.json.encode(options) + b"\n")
    return loop


async def _line(loop: asyncio.subprocess.Process) -> bytes:
    said = await loop.stdout.readline() if loop.stdout is not None else b""
    if not said:
        raise RuntimeError("a loop ended before its time")
    return said


async def share(options: Options) -> Measured:
    """Run one loop: connect, report that, and begin on the parent's signal."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=options.bootstrap,
        group_id=f"{options.name}-{options.share}",
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
        for topic in options.outputs:
            await producer.partitions_for(topic)
        sys.stdout.buffer.write(b"ready\n")
        sys.stdout.buffer.flush()
        await asyncio.to_thread(sys.stdin.buffer.readline)
        consumer.assign([TopicPartition(given.topic, number) for given in options.inputs for number in options.mine])
        write = _batches(producer) if options.batches else _records(producer)
        return await _loop(options, consumer, write)
    finally:
        await consumer.stop()
        await producer.stop()


async def _loop(options: Options, consumer: AIOKafkaConsumer, write: Write) -> Measured:
    rows: dict[bytes, tuple[int, int]] = {}
    commands, *_ = inputs = options.inputs
    outputs = {
        given.topic: [Output(topic, given.each, records) for topic, records in given.writes if records.each]
        for given in inputs
    }
    read: Counter[TopicPartition] = Counter()
    left = sum(given.each * len(ceremonies_of(number, options)) for given in inputs for number in options.mine)
    began, cpu = time.time(), time.process_time()
    while left:
        for tp, records in (await consumer.getmany(timeout_ms=1000, max_records=2000)).items():
            left -= len(records)
            if tp.topic == commands.topic:
                for record in records:
                    rows[record.key] = (rows.get(record.key, (0, 0))[0] + 1, record.offset)
            await write(
                {
                    TopicPartition(output.topic, tp.partition): output.caused_by(records, read[tp])
                    for output in outputs[tp.topic]
                }
            )
            read[tp] += len(records)
    await write({})
    return Measured(began, time.time(), time.process_time() - cpu)


def _records(producer: AIOKafkaProducer) -> Write:
    """Write with one `send` a record, as the client's documentation does."""

    async def write(records: dict[TopicPartition, list[NewRecord]]) -> None:
        for tp, some in records.items():
            for record in some:
                await producer.send(tp.topic, record.value, record.key, tp.partition, headers=record.headers)
        if not records:
            await producer.flush()

    return write


def _batches(producer: AIOKafkaProducer) -> Write:
    """Write one produce batch for each batch read of a partition."""

    async def write(records: dict[TopicPartition, list[NewRecord]]) -> None:
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


async def _prepare(options: Options) -> None:
    """Create the topics, and append the records that the loops read."""
    log = KafkaLog([options.bootstrap], HostClock(), topic_config=options.topic_config)
    await log.start()
    try:
        topics = [*(given.topic for given in options.inputs), *options.outputs]
        await log.create([TopicSpec(topic, options.partitions, KEPT_MS) for topic in topics])
        for given in options.inputs:
            for records in given.holds:
                await _preload(log, given.topic, records, options)
    finally:
        await log.stop()


async def _preload(log: KafkaLog, topic: str, records: Records, options: Options) -> None:
    value, headers = template(records.size)
    for partition in range(options.partitions):
        made = [
            NewRecord(b"%0*d" % (records.size.key, number), value, headers)
            for _ in range(records.each)
            for number in ceremonies_of(partition, options)
        ]
        await asyncio.gather(*append_batches(log.producer, TopicPartition(topic, partition), made))


def main() -> None:
    options = msgspec.json.decode(sys.stdin.buffer.readline(), type=Options)
    found = uvloop.run(measure(options) if options.share is None else share(options))
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main()
