"""The site of one run on Kafka: topics, a nats-server and workers of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.aio.client import Client

from bridge.clock import HostClock
from streams.topology import topics
from streams.transport.kafka.log import KafkaLog
from tests.benchmarks import processes
from tests.benchmarks.layouts import ONE, Layout
from tests.benchmarks.processes import MeasuredNats, WorkerProcess
from tests.services import KafkaServer


@dataclass(frozen=True, slots=True)
class Ground:
    """Settings of the services of a run."""

    kafka: KafkaServer
    folder: Path
    name: str
    """Prefix of topics and groups."""
    partitions: int
    flush: bool = True
    """Kafka syncs every append to disk (`flush.messages=1` on every topic); else its host decides."""
    sync_always: bool = False
    """NATS syncs every message to disk, else at its default interval."""
    layout: Layout = ONE

    @property
    def topic_config(self) -> dict[str, str]:
        return {"flush.messages": "1"} if self.flush else {}

    def settings(self, nats_url: str) -> dict[str, object]:
        """Environment of a worker."""
        return {
            "CEREMONY_LOG": f"kafka://{self.kafka.bootstrap}",
            "CEREMONY_TOPIC_PREFIX": self.name,
            "CEREMONY_PARTITIONS": self.partitions,
            "NATS_URL": nats_url,
            **({"CEREMONY_FLUSH_MESSAGES": 1} if self.flush else {}),
        }


@dataclass(frozen=True, slots=True)
class Site:
    """The running services of a run."""

    ground: Ground
    log: KafkaLog
    nats: MeasuredNats
    connection: Client
    workers: list[WorkerProcess]


@contextlib.asynccontextmanager
async def log_of(ground: Ground) -> AsyncIterator[KafkaLog]:
    """Open the log and create the engine's topics with their real settings."""
    log = KafkaLog([ground.kafka.bootstrap], HostClock(), topic_config=ground.topic_config)
    await log.start()
    try:
        await log.create(topics(ground.name, ground.partitions))
        yield log
    finally:
        await log.stop()


@contextlib.asynccontextmanager
async def started(ground: Ground, log: KafkaLog) -> AsyncIterator[Site]:
    """Start a nats-server, and the workers without waiting; stop all at the end."""
    async with (
        processes.nats(ground.folder / "nats", sync_always=ground.sync_always) as server,
        processes.workers(ground.folder, ground.settings(server.url), ground.layout) as workers,
    ):
        connection = await nats.connect(server.url)
        try:
            yield Site(ground, log, server, connection, workers)
        finally:
            await connection.close()
