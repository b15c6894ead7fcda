"""Read models: rows a second of each projector against the store's own bulk limit, and the lag under a steady load.

`python -m tests.benchmarks.read_models` starts Kafka, Valkey and Neo4j, and prints a table. The limit is a bare loop of
the store's client that writes the same bytes in the same run, in batches of the same size and as many at a time, with
the rows at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from aiokafka import AIOKafkaProducer
from msgspec.structs import replace
from neo4j import AsyncGraphDatabase
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from bridge.clock import HostClock
from bridge.projection.documents import MOST_ROWS, Changes
from bridge.projection.projector import Projector
from ports.log import TopicSpec
from steps.secrets.redactor import TextRedactor
from streams.transport.kafka.log import KafkaLog
from tables.instance import Instance, encode_instance
from tables.read_model import Document, document_of, neo4j_properties, nothing_redacted, valkey_json
from tests.bridge.projection.world import DEFINITION, Neo4jSite, Site, ValkeySite, row, row_projector
from tests.services import KafkaServer, Neo4jServer, ValkeyServer, running

REDACTOR = TextRedactor()
PARTITIONS = 4
RUNS = 3
# A chain of five merges is one row and eight events.
EVENTS_PER_ROW = 8
EVENTS_PER_SECOND = 5_000
LOAD_SECONDS = 10.0
TICK_SECONDS = 0.1
BULK_NODES = """
UNWIND $rows AS row MERGE (i:CeremonyInstance {instance_id: row.instance_id}) SET i += row
MERGE (d:CeremonyDefinition {hash: $hash}) MERGE (i)-[:INSTANCE_OF]->(d)
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one store and run."""

    limit: float
    """Rows a second of the bare loop."""
    projected: float
    """Rows a second of the projector, from its start to the last row."""
    lag_p50_ms: float
    lag_max_ms: float


def instances(count: int) -> list[Instance]:
    """Rows of about 700 bytes, as those of a chain of merges are."""
    template = row("c0:s1", note="x" * 300)
    return [
        replace(template, instance_id=f"c{number}:s1", ceremony_id=f"c{number}", correlation_id=f"c{number}:s1")
        for number in range(count)
    ]


async def bare_valkey(site: ValkeySite, documents: Sequence[Document]) -> float:
    """Write documents and sets with pipelines, one sync for each as for a script; return rows a second."""
    address = site.address
    client = Redis(host=address.host, port=address.port, password=address.password())
    values = [(document.instance_id, document.correlation_id, valkey_json(document)) for document in documents]

    async def write(batch: Sequence[tuple[str, str, bytes]]) -> None:
        async with client.pipeline(transaction=True) as pipe:
            for instance_id, correlation_id, value in batch:
                pipe.set(f"ceremony:instance:{instance_id}", value)
                pipe.sadd("ceremony:instances:all", instance_id)
                pipe.sadd(f"ceremony:instances:correlation:{correlation_id}", instance_id)
            await pipe.execute()

    try:
        return await in_lanes(values, write)
    finally:
        await client.aclose()


async def bare_neo4j(site: Neo4jSite, documents: Sequence[Document]) -> float:
    """Merge nodes with their properties and relations, a transaction for each batch; return rows a second."""
    address = site.address
    async with AsyncGraphDatabase.driver(address.uri, auth=(address.user, address.password())) as driver:

        async def write(batch: Sequence[dict[str, Any]]) -> None:
            async with driver.session() as session:
                await (await session.run(BULK_NODES, rows=batch, hash=DEFINITION.hash)).consume()

        return await in_lanes([neo4j_properties(document) for document in documents], write)


async def in_lanes(rows: Sequence[Any], write: Callable[[Any], Awaitable[None]]) -> float:
    """Write all rows, as many batches at a time as there are partitions; return rows a second."""
    batches = iter([rows[first : first + MOST_ROWS] for first in range(0, len(rows), MOST_ROWS)])

    async def lane() -> None:
        for batch in batches:
            await write(batch)

    begun = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(PARTITIONS)))
    return len(rows) / (time.perf_counter() - begun)


class Ground:
    """A changelog on Kafka with a number of rows."""

    def __init__(self, log: KafkaLog, producer: AIOKafkaProducer) -> None:
        self.log = log
        self.producer = producer
        self.prefix = f"b{uuid.uuid4().hex[:8]}"
        self.topic = f"{self.prefix}.ceremonies.changelog"

    async def create(self) -> None:
        definitions = f"{self.prefix}.definitions.changelog"
        names = (self.topic, definitions)
        await self.log.create([TopicSpec(name, PARTITIONS, compacted=True) for name in names])
        for partition in range(PARTITIONS):
            await self.log.append(definitions, partition, DEFINITION.hash.encode(), DEFINITION.text.encode())

    async def put(self, rows: Sequence[Instance]) -> None:
        sent = []
        for instance in rows:
            key = instance.instance_id.encode()
            partition = self.log.partition_of(key, PARTITIONS)
            sent.append(await self.producer.send(self.topic, encode_instance(instance), key, partition=partition))
        await asyncio.gather(*sent)

    @contextlib.asynccontextmanager
    async def projecting(self, site: Site) -> AsyncIterator[Projector[Changes]]:
        clock = HostClock()
        projector = row_projector(
            self.log,
            site.store(self.topic),
            clock,
            prefix=self.prefix,
            partitions=PARTITIONS,
            redact_by=lambda d: REDACTOR.of(d.prompts if d else ()).encoded,
        )
        await projector.start()
        try:
            yield projector
        finally:
            await projector.stop()


def rows_written(projector: Projector[Any]) -> Callable[[], float]:
    """Return a counter of the rows that the projector writes, or removes, from now on."""

    def written() -> float:
        return REGISTRY.get_sample_value("ceremony_projector_rows_total", {"store": projector.store.name}) or 0.0

    before = written()
    return lambda: written() - before


async def projected(ground: Ground, site: Site, count: int) -> float:
    """Return rows a second from the first row in the store to the last."""
    async with ground.projecting(site) as projector:
        counter = rows_written(projector)
        while not counter():
            await asyncio.sleep(0.001)
        begun, first = time.perf_counter(), counter()
        while counter() < count:
            await asyncio.sleep(0.005)
        return (count - first) / (time.perf_counter() - begun)


async def lags(ground: Ground, site: Site, rows: Sequence[Instance]) -> list[float]:
    """Return the age of the newest rows when they are in the store, in milliseconds, at a steady load."""
    each = int(EVENTS_PER_SECOND / EVENTS_PER_ROW * TICK_SECONDS)
    found: list[float] = []
    async with ground.projecting(site) as projector:
        written, sent, version = rows_written(projector), 0, 1
        while projector.state != "ok" or len(projector.assigned) < PARTITIONS:
            await asyncio.sleep(0.1)
        base = written()
        for tick in range(int(LOAD_SECONDS / TICK_SECONDS)):
            begun = time.perf_counter()
            version += 1
            first = tick * each % (len(rows) - each)
            await ground.put([replace(one, version=version) for one in rows[first : first + each]])
            sent += each
            while written() - base < sent:
                await asyncio.sleep(0.002)
            taken = time.perf_counter() - begun
            found.append(taken * 1000)
            await asyncio.sleep(max(0.0, TICK_SECONDS - taken))
    return found


async def measured(site: Site, log: KafkaLog, producer: AIOKafkaProducer, count: int) -> Figures:
    rows = instances(count)
    documents = [document_of(one, nothing_redacted) for one in rows]
    site.wipe()
    store = site.store()
    await store.open()
    await store.close()
    limit = await (bare_valkey(site, documents) if isinstance(site, ValkeySite) else bare_neo4j(site, documents))
    site.wipe()
    ground = Ground(log, producer)
    await ground.create()
    await ground.put(rows)
    rate = await projected(ground, site, count)
    ages = await lags(ground, site, rows)
    return Figures(limit, rate, statistics.median(ages), max(ages))


async def main(count: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceremony-")))
        servers: tuple[Any, ...] = (KafkaServer(folder / "k"), ValkeyServer(folder / "v"), Neo4jServer(folder / "n"))
        kafka, valkey, neo4j = [await asyncio.to_thread(stack.enter_context, running(server)) for server in servers]
        log = KafkaLog([kafka.bootstrap], HostClock())
        await log.start()
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=2)
        await producer.start()
        try:
            for site in (ValkeySite(valkey), Neo4jSite(neo4j)):
                for _ in range(RUNS):
                    print(type(site).__name__, await measured(site, log, producer, count), flush=True)
                site.close()
        finally:
            await producer.stop()
            await log.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    uvloop.run(main(parser.parse_args().rows))
