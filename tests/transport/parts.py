"""A part on a log in memory, with an agent that is a function of a batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from bridge.clock import HostClock
from ports.clock import Clock
from ports.log import AgentSpec, TableSpec
from streams.transport.partition.batch import PartBatch
from streams.transport.partition.checkpoints import Limits
from streams.transport.partition.dead_letters import DeadLetterTopic
from streams.transport.partition.part import Part
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStores
from tests.transport.memory import MemoryLog

COUNTS = TableSpec("counts", lambda row: json.dumps(row).encode(), json.loads)
COUNTER = AgentSpec("counter", "commands", tables=[COUNTS], batch=10)
WORKER = AgentSpec("worker", "requests", batch=10)
Agent = Callable[[PartBatch], Awaitable[None]]


async def count(batch: PartBatch) -> None:
    """Counts records by key and answers each with its key's new count."""
    for record in batch:
        assert record.key is not None
        number = (batch.get("counts", record.key) or 0) + 1
        batch.put("counts", record.key, number)
        batch.send("answers", record.key, str(number).encode())


def part_of(
    log: MemoryLog,
    agent: Agent,
    spec: AgentSpec = COUNTER,
    *,
    interval: float = 60.0,
    limits: Limits | None = None,
    partitions: int = 4,
    clock: Clock | None = None,
) -> Part:
    async def deliver(batch: PartBatch) -> None:
        async def work() -> None:
            try:
                await agent(batch)
            except Exception as failure:  # noqa: BLE001 - as a stream does
                batch.finish(failure)
            else:
                batch.finish()

        tasks.append(asyncio.create_task(work()))

    tasks: list[asyncio.Task[None]] = []
    return Part(
        spec,
        0,
        partitions=partitions,
        backend=log.backend(spec, 0),
        clock=clock or HostClock(),
        deliver=deliver,
        dead_letters=DeadLetterTopic("deadletters", 4),
        cache=RowCache(),
        stores=MemoryStores(),
        interval=lambda: interval,
        limits=limits,
    )


@asynccontextmanager
async def running(part: Part) -> AsyncIterator[Part]:
    """Take and run the part, and end it in good order."""
    await part.take()
    task = asyncio.create_task(part.run())
    try:
        yield part
    finally:
        part.stop()
        try:
            await task
        finally:
            await part.close()


async def crashed(part: Part) -> None:
    """End a running part like kill -9: without a last checkpoint and a close."""
    await part.take()
    task = asyncio.create_task(part.run())
    await until(lambda: part.position >= part.end_at_take_over)
    task.cancel()
    await asyncio.wait({task})


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


def commands(log: MemoryLog, *keys: str, topic: str = "commands") -> None:
    for number, key in enumerate(keys):
        log.append(topic, 0, key.encode(), b"%d" % number)
