"""Bridges that share the partitions of `events` are killed and stopped while these move; each effect id is sent once.

The stream's own duplicate window is only a second, so the bridges themselves must avoid sending twice. The test takes
40 s and is not part of the test command: `scripts/test tests/workers/long_bridges.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from nats.js.api import StreamConfig

from bridge.clock import HostClock
from streams.envelope import event_record
from streams.topics import DEADLETTERS, EVENTS
from streams.topology import topics
from streams.transport.kafka.log import KafkaLog
from tables.effects import Event
from tests.bridge.nats.world import client, count, event, stored
from tests.e2e.world import until
from tests.services import KafkaServer
from tests.workers.fleet import Fleet

pytestmark = pytest.mark.timeout(110)
PARTITIONS, CEREMONIES, EVENTS_OF_EACH = 2, 40, 80


class Engine:
    """Writes events as the engine does, and some again, as it does after a crash."""

    def __init__(self, fleet: Fleet, log: KafkaLog) -> None:
        self._log = log
        self._topic = f"{fleet.prefix}.{EVENTS}"
        self._offsets: Counter[int] = Counter()
        self._written: defaultdict[int, list[tuple[Event, int]]] = defaultdict(list)
        self.ids: list[str] = []

    async def write(self, number: int) -> None:
        """Write the event of this number of every ceremony; every tenth time write the last hundred again."""
        for ceremony in range(CEREMONIES):
            one = event(ceremony, number)
            partition = self._log.partition_of(one.instance_id.encode(), PARTITIONS)
            self._written[partition].append((one, self._offsets[partition]))
            self._offsets[partition] += 1
            self.ids.append(one.id)
            await self._append(partition, *self._written[partition][-1])
        if number % 10 == 9:
            for partition, written in self._written.items():
                for one, offset in written[-100:]:
                    await self._append(partition, one, offset)

    async def _append(self, partition: int, one: Event, offset: int) -> None:
        key, value, headers = event_record(one, offset, 0, 1)
        await self._log.append(self._topic, partition, key, value, headers)


async def test_bridges_that_take_each_others_partitions_send_each_effect_once(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    async with Fleet(tmp_path, kafka.bootstrap, partitions=PARTITIONS, CEREMONY_ROLE="bridge") as fleet:
        async with client(fleet.nats.url) as link:
            await link.jetstream().add_stream(
                StreamConfig(name="CEREMONY", subjects=["ceremony.>"], duplicate_window=1.0)
            )
        log = KafkaLog([kafka.bootstrap], HostClock())
        await log.start()
        try:
            await log.create(topics(fleet.prefix, PARTITIONS))
            await _moving(fleet, Engine(fleet, log))
            assert [end for _, end in await log.ends(f"{fleet.prefix}.{DEADLETTERS}")] == [0] * PARTITIONS
        finally:
            await log.stop()


async def _moving(fleet: Fleet, engine: Engine) -> None:
    first, second = await fleet.process(), await fleet.process()
    await first.ready()
    await second.ready()
    writing = asyncio.create_task(_write(engine))
    await _reached(fleet, 400)
    first.kill()  # the next owner of its partition reads back the messages that it sent and did not commit
    await asyncio.sleep(1.2)
    first.start()
    await _reached(fleet, 1600)
    stopping = asyncio.create_task(asyncio.to_thread(second.terminate))
    await _reached(fleet, 2400)
    assert await stopping == 0
    second.start()
    await second.ready()
    first.pause()  # past its session: after waking up it must not continue
    await asyncio.sleep(8)
    first.resume()
    await writing
    await _reached(fleet, len(engine.ids))
    await asyncio.sleep(1)
    messages = await stored(fleet.nats.url)
    ids = Counter((message.headers or {})["Nats-Msg-Id"] for message in messages)
    assert set(ids) == set(engine.ids)
    assert {one: times for one, times in ids.items() if times > 1} == {}
    order: defaultdict[str, list[int]] = defaultdict(list)
    for one in ((message.headers or {})["Nats-Msg-Id"] for message in messages):
        instance, number, _ = one.rsplit("/", 2)
        order[instance].append(int(number))
    assert all(numbers == sorted(numbers) for numbers in order.values())


async def _write(engine: Engine) -> None:
    for number in range(EVENTS_OF_EACH):
        await engine.write(number)
        await asyncio.sleep(0.1)


async def _reached(fleet: Fleet, wanted: int) -> None:
    async def there() -> bool:
        return await count(fleet.nats.url) >= wanted

    await until(there, f"{wanted} messages are on CEREMONY", 50)
