"""Projectors on Kafka share the partitions; each row is written by one of them, whoever leaves."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from bridge.clock import HostClock
from bridge.projection.documents import Changes
from bridge.projection.projector import Projector
from ports.log import TopicSpec
from streams.transport.kafka.log import KafkaLog
from tables.instance import encode_instance
from tests.bridge.projection.test_projector import until, until_versions
from tests.bridge.projection.world import DEFINITION, ValkeySite, row, row_projector
from tests.conftest import KafkaAddress
from tests.services import KafkaServer, ValkeyServer

pytestmark = pytest.mark.timeout(90)
PARTITIONS = 4


@pytest.fixture
async def log(kafka: KafkaServer | KafkaAddress) -> AsyncIterator[KafkaLog]:
    log = KafkaLog([kafka.bootstrap], HostClock())
    await log.start()
    yield log
    await log.stop()


async def test_projectors_share_the_partitions_and_take_over_from_one_that_leaves(
    log: KafkaLog, valkey: ValkeyServer
) -> None:
    # specification 25.5
    site = ValkeySite(valkey)
    site.wipe()
    prefix = f"p{uuid.uuid4().hex[:8]}"
    topic = f"{prefix}.ceremonies.changelog"
    definitions = f"{prefix}.definitions.changelog"
    await log.create([TopicSpec(name, PARTITIONS, compacted=True) for name in (topic, definitions)])

    def projector() -> Projector[Changes]:
        return row_projector(log, site.store(topic), HostClock(), prefix=prefix, partitions=PARTITIONS)

    async def put(instance_id: str, version: int) -> None:
        partition = log.partition_of(instance_id.encode(), PARTITIONS)
        await log.append(definitions, partition, DEFINITION.hash.encode(), DEFINITION.text.encode())
        value = encode_instance(row(instance_id, version))
        await log.append(topic, partition, instance_id.encode(), value)

    ids = [f"c{number}:s1" for number in range(12)]
    for instance_id in ids:
        await put(instance_id, 1)
    first, second = projector(), projector()
    async with AsyncExitStack() as stack:
        stack.callback(site.close)
        await first.start()
        async with AsyncExitStack() as leaving:
            leaving.push_async_callback(first.stop)
            await until_versions(site, dict.fromkeys(ids, 1))
            await second.start()
            stack.push_async_callback(second.stop)
            await until(lambda: shares(first, second) == [2, 2])
            for instance_id in ids:
                await put(instance_id, 2)
            await until_versions(site, dict.fromkeys(ids, 2))
        for instance_id in ids:
            await put(instance_id, 3)
        await until_versions(site, dict.fromkeys(ids, 3))
        await until(lambda: second.lag_records == 0)


def shares(*projectors: Projector[Changes]) -> list[int]:
    return [len(projector.assigned) for projector in projectors]
