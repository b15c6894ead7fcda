"""Appends the ceremonies of a workload to the log, as a front would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiokafka import TopicPartition

from streams.transport.kafka.log import KafkaLog
from streams.transport.kafka.wire import append_batches
from streams.transport.partition.backend import NewRecord
from tables.commands import PutDefinition, Start, encode_command
from tables.definition import Definition
from tests.benchmarks.workloads import Workload

PAYLOAD = {"text": "x" * 80}
STORY = "S"


def commands(
    workload: Workload, prefix: str, ceremonies: int, partitions: int, partition_of: Callable[[bytes, int], int]
) -> list[list[NewRecord]]:
    """Return for each partition the definition, and a Start for each of its ceremonies."""
    pinned = workload.definition()
    put = NewRecord(pinned.hash.encode(), encode_command(PutDefinition(hash=pinned.hash, text=pinned.text)))
    made = [[put] for _ in range(partitions)]
    for number in range(ceremonies):
        command = start(pinned, f"{prefix}-{number}")
        key = command.instance_id.encode()
        made[partition_of(key, partitions)].append(NewRecord(key, encode_command(command)))
    return made


async def append(log: KafkaLog, topic: str, records: Sequence[Sequence[NewRecord]]) -> None:
    """Append the records of each partition in as few batches as possible; durable at the end."""
    await log.producer.partitions_for(topic)  # the leaders must be known: batches bypass `send`
    sent = [
        append_batches(log.producer, TopicPartition(topic, partition), some)
        for partition, some in enumerate(records)
        if some
    ]
    await asyncio.gather(*(one for futures in sent for one in futures))


def start(definition: Definition, ceremony_id: str) -> Start:
    """A Start as the front makes it of a request."""
    instance_id = f"{ceremony_id}:{STORY}"
    return Start(
        instance_id=instance_id,
        ceremony_id=ceremony_id,
        story_id=STORY,
        definition_name=definition.name,
        definition_hash=definition.hash,
        correlation_id=instance_id,
        requested_by="benchmark",
        inputs={"payload": PAYLOAD, "ceremony_id": ceremony_id, "story_id": STORY},
        inputs_size=150,
    )
