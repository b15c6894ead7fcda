"""Before a run is timed: every worker has its share of the partitions, and has done some work of each kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from streams.topics import COMMANDS, prefixed
from tests.benchmarks import jetstream, preload
from tests.benchmarks.processes import BenchmarkFailed
from tests.benchmarks.site import Site

CEREMONIES = 200
ROUNDS = 20
SECONDS = 60.0
OWNED, PUBLISHED = "ceremony_partitions_owned", "ceremony_nats_published_total"


async def shared(site: Site) -> list[int]:
    """Return when all are ready and each engine owns some of the partitions: how many. Raises BenchmarkFailed."""
    layout, partitions = site.ground.layout, site.ground.partitions
    deadline = time.monotonic() + SECONDS
    while True:
        for worker in site.workers:
            await worker.ready()
        owned = [int(said.get(OWNED, 0)) for said in await _metrics(site)]
        if sum(owned) == partitions and sum(map(bool, owned)) == layout.members("engine"):
            return owned
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"{layout} own {owned} of {partitions} partitions after {SECONDS:.0f} s")
        await asyncio.sleep(0.1)


async def warm_up(site: Site) -> int:
    """Run ceremonies until each bridge has published some events; how many there are. Raises BenchmarkFailed."""
    layout, partitions, topic = site.ground.layout, site.ground.partitions, prefixed(site.ground.name, COMMANDS)
    for number in range(1, ROUNDS + 1):
        before = await _metrics(site)
        commands = preload.commands(f"warm-{number}", CEREMONIES, partitions, site.log.partition_of)
        await preload.append(site.log, topic, commands)
        events = number * CEREMONIES * preload.EVENTS
        await jetstream.until_stored(site.connection, site.workers, events, SECONDS)
        after = await _metrics(site)
        published = [now.get(PUBLISHED, 0) > then.get(PUBLISHED, 0) for then, now in zip(before, after, strict=True)]
        if sum(published) == layout.members("bridge"):
            return events
    raise BenchmarkFailed(f"not every bridge of {layout} has published events")


async def _metrics(site: Site) -> list[Mapping[str, float]]:
    return [await worker.metrics() for worker in site.workers]
