"""What the engine is given to do: ceremonies of `merge_chain`, appended to the log as a front would append them."""

from __future__ import annotations

import asyncio

from aiokafka import TopicPartition

from steps.registry import all_kinds
from streams.topics import COMMANDS, prefixed
from streams.topology import topics
from streams.transport.contract import Out
from streams.transport.kafka_client import append_batches
from streams.transport.kafka_log import KafkaLog
from tables.commands import PutDefinition, Start, encode_command
from tables.definition import Definition
from tables.loader import load
from tests.benchmarks.processes import SPECS

DEFINITION = "merge_chain"
STEPS = 5
"""Of one ceremony."""
EVENTS = 8
"""Of one ceremony: started, five steps executed, one transition, completed."""
PAYLOAD = {"text": "x" * 80}
STORY = "S"


async def preload(log: KafkaLog, prefix: str, ceremonies: int, partitions: int) -> None:
    """Create the topics, append the definition to each partition, and a Start for each ceremony."""
    definition = _definition()
    await log.create(topics(prefix, partitions))
    put = Out(definition.hash.encode(), encode_command(PutDefinition(hash=definition.hash, text=definition.text)))
    appended = [[put] for _ in range(partitions)]
    for number in range(ceremonies):
        start = _start(definition, f"{prefix}-{number}")
        key = start.instance_id.encode()
        appended[log.partition_of(key, partitions)].append(Out(key, encode_command(start)))
    topic = prefixed(prefix, COMMANDS)
    for partition, records in enumerate(appended):
        await asyncio.gather(*append_batches(log.producer, TopicPartition(topic, partition), records))


def _definition() -> Definition:
    file = SPECS / f"{DEFINITION}.yaml"
    return load(file.read_text(encoding="utf-8"), file.name, all_kinds())


def _start(definition: Definition, ceremony_id: str) -> Start:
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
