"""Histories: events a second of their projector against Valkey's own bulk limit, and the lag under a steady load.

`python -m tests.benchmarks.histories` starts Kafka and Valkey, and prints a line for each run. The limit is a bare loop
of the client that appends the same bytes to the same lists and trims them, in batches of the same size and as many at a
time, with the events at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import uvloop
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis

from bridge.clock import HostClock
from bridge.projection.histories import Appended, HistoryModel
from bridge.projection.projector import Projector
from bridge.valkey.history import HISTORY, MOST_EVENTS, ValkeyHistories
from ports.log import TopicSpec
from streams.envelope import EventRecord, event_record
from streams.transport.kafka.log import KafkaLog
from tables.effects import Event
from tests.benchmarks.read_models import (
    EVENTS_PER_ROW,
    EVENTS_PER_SECOND,
    LOAD_SECONDS,
    PARTITIONS,
    REDACTOR,
    RUNS,
    TICK_SECONDS,
    Figures,
    in_lanes,
    rows_written,
)
from tests.bridge.projection.world import ValkeySite
from tests.services import KafkaServer, ValkeyServer, running

BEGIN = 1_750_000_000_000


def records(first: int, count: int) -> list[EventRecord]:
    """Events of about 600 bytes, eight of each ceremony, those of many ceremonies in turns."""
    found = []
    for number in range(first, first + count):
        ceremony, version = number // EVENTS_PER_ROW, number % EVENTS_PER_ROW + 1
        instance_id = f"c{ceremony}:s1"
        event = Event(
            id=f"{instance_id}/{version}/0@2",
            subject="ceremony.started" if version == 1 else "ceremony.step.executed",
            instance_id=instance_id,
            correlation_id=instance_id,
            at=BEGIN + number,
            payload={"instance_id": instance_id, "step_id": "join", "status": "COMPLETED", "output": "x" * 250},
        )
        found.append(event_record(event, number, 0, 2))
    return found


async def bare(site: ValkeySite, events: Sequence[EventRecord]) -> float:
    """Append events with pipelines, one sync for each as for a script; return events a second."""
    address = site.address
    client = Redis(host=address.host, port=address.port, password=address.password())

    async def write(batch: Sequence[EventRecord]) -> None:
        async with client.pipeline(transaction=True) as pipe:
            for key, value, _ in batch:
                name = HISTORY + key.decode()
                pipe.rpush(name, value)
                pipe.ltrim(name, -MOST_EVENTS, -1)
            await pipe.execute()

    try:
        return await in_lanes(events, write)
    finally:
        await client.aclose()


class EventGround:
    """A topic of events on Kafka."""

    def __init__(self, log: KafkaLog, producer: AIOKafkaProducer) -> None:
        self.log = log
        self.producer = producer
        self.prefix = f"h{uuid.uuid4().hex[:8]}"
        self.topic = f"{self.prefix}.events"

    async def put(self, events: Sequence[EventRecord]) -> None:
        sent = []
        for key, value, headers in events:
            partition = self.log.partition_of(key, PARTITIONS)
            sent.append(await self.producer.send(self.topic, value, key, partition=partition, headers=headers))
        await asyncio.gather(*sent)

    @contextlib.asynccontextmanager
    async def copying(self, site: ValkeySite) -> AsyncIterator[Projector[Appended]]:
        clock = HostClock()
        store = ValkeyHistories(site.address, topic=self.topic)
        model = HistoryModel(store, REDACTOR, clock, prefix=self.prefix)
        projector = Projector(self.log, model, clock, partitions=PARTITIONS)
        await projector.start()
        try:
            yield projector
        finally:
            await projector.stop()


async def copied(ground: EventGround, site: ValkeySite, count: int) -> float:
    """Return events a second from the first event in the store to the last."""
    async with ground.copying(site) as projector:
        counter = rows_written(projector)
        while not counter():
            await asyncio.sleep(0.001)
        begun, first = time.perf_counter(), counter()
        while counter() < count:
            await asyncio.sleep(0.005)
        return (count - first) / (time.perf_counter() - begun)


async def lags(ground: EventGround, site: ValkeySite, first: int) -> list[float]:
    """Return the age of the newest events when they are in the store, in milliseconds, at a steady load."""
    each = int(EVENTS_PER_SECOND * TICK_SECONDS)
    found: list[float] = []
    async with ground.copying(site) as projector:
        written, sent = rows_written(projector), 0
        while projector.state != "ok" or len(projector.assigned) < PARTITIONS:
            await asyncio.sleep(0.1)
        base = written()
        for _ in range(int(LOAD_SECONDS / TICK_SECONDS)):
            begun = time.perf_counter()
            await ground.put(records(first + sent, each))
            sent += each
            while written() - base < sent:
                await asyncio.sleep(0.002)
            taken = time.perf_counter() - begun
            found.append(taken * 1000)
            await asyncio.sleep(max(0.0, TICK_SECONDS - taken))
    return found


async def measured(site: ValkeySite, log: KafkaLog, producer: AIOKafkaProducer, count: int) -> Figures:
    events = records(0, count)
    site.wipe()
    limit = await bare(site, events)
    site.wipe()
    ground = EventGround(log, producer)
    await log.create([TopicSpec(ground.topic, PARTITIONS)])
    await ground.put(events)
    rate = await copied(ground, site, count)
    ages = await lags(ground, site, count)
    return Figures(limit, rate, statistics.median(ages), max(ages))


async def main(count: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceremony-")))
        kafka = await asyncio.to_thread(stack.enter_context, running(KafkaServer(folder / "k")))
        valkey = await asyncio.to_thread(stack.enter_context, running(ValkeyServer(folder / "v")))
        log = KafkaLog([kafka.bootstrap], HostClock())
        await log.start()
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=2)
        await producer.start()
        site = ValkeySite(valkey)
        try:
            for _ in range(RUNS):
                print(await measured(site, log, producer, count), flush=True)
        finally:
            site.close()
            await producer.stop()
            await log.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=40_000)
    uvloop.run(main(parser.parse_args().events))
