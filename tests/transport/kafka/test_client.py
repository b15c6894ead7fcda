"""Waiting times of fetches: idle readers fetch rarely, and readers with waiting requests fetch often."""

from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.protocol.fetch import FetchRequest

from bridge.clock import HostClock
from ports.log import TopicSpec
from streams.transport.kafka.client import FETCH_WAIT_MS, IDLE_WAIT_MS, PartitionReader, fetch_cheaply
from streams.transport.kafka.log import KafkaLog
from streams.transport.kafka.wire import Fetch
from tests.services import KafkaServer


@pytest.mark.parametrize(
    ("records", "hurry", "waits"),
    [
        ({}, False, IDLE_WAIT_MS),
        ({"events-0": "come and not taken"}, False, FETCH_WAIT_MS),
        ({}, True, FETCH_WAIT_MS),
    ],
    ids=["all are asked for", "one is left out", "in a hurry"],
)
def test_a_fetch_waits_long_while_no_request_waits_for_it(records: Any, hurry: bool, waits: int) -> None:  # noqa: FBT001
    fetcher = SimpleNamespace(_records=records, _fetch_max_wait_ms=-1)
    fetcher._get_actions_per_node = lambda assignment: ([], assignment, fetcher._fetch_max_wait_ms)
    fetch_cheaply(SimpleNamespace(_fetcher=fetcher), lambda: hurry)
    assert fetcher._get_actions_per_node("assignment") == ([], "assignment", waits)


def test_fetches_are_encoded_quickly_and_go_to_the_same_brokers() -> None:
    fetch = FetchRequest(20, 1, 1 << 20, 1, [("events", [(0, 7, 1 << 20)])])
    fetcher = SimpleNamespace(_records={}, _get_actions_per_node=lambda _assignment: ([(3, fetch)], {}, 0.2, False, []))
    fetch_cheaply(SimpleNamespace(_fetcher=fetcher))
    ((node, request),), *others = fetcher._get_actions_per_node("assignment")
    assert (node, type(request), request.topics) == (3, Fetch, fetch.topics)
    assert others == [{}, 0.2, False, []]


async def test_an_idle_reader_fetches_some_times_a_second_and_returns_a_record_at_once(kafka: KafkaServer) -> None:
    log = KafkaLog([kafka.bootstrap], HostClock())
    await log.start()
    tp = TopicPartition(f"idle-{uuid.uuid4().hex[:8]}", 0)
    await log.create([TopicSpec(tp.topic, 2, 3_600_000)])
    reader = PartitionReader([kafka.bootstrap], HostClock())
    await reader.start([tp, TopicPartition(tp.topic, 1)])
    client, fetches = reader._consumer._client, list[int]()
    send = client.send

    async def counted(node: int, request: Any, **options: Any) -> Any:
        if isinstance(request, FetchRequest):
            fetches.append(node)
        return await send(node, request, **options)

    client.send = counted
    try:
        reader.seek(tp, (await reader.range(tp))[1])
        fetching = asyncio.ensure_future(reader.fetch(tp, 10))
        await asyncio.sleep(1.0)
        assert 1 <= len(fetches) <= 1000 / FETCH_WAIT_MS / 2
        await log.append(tp.topic, 0, b"k", b"v")
        async with asyncio.timeout(10):
            assert [record.value for record in await fetching] == [b"v"]
    finally:
        await reader.stop()
        await log.stop()
