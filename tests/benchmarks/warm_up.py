"""Warms workers before a timed run: each has its share of the partitions and has done some work of each kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from streams.topics import COMMANDS, prefixed
from tests.benchmarks import jetstream, preload
from tests.benchmarks.processes import BenchmarkFailed
from tests.benchmarks.site import Site
from tests.benchmarks.workloads import MERGES, Workload

CEREMONIES = 200
ROUNDS = 20
SECONDS = 60.0
# The metrics of each worker.
Said = Sequence[Mapping[str, float]]
OWNED, PUBLISHED = "ceremony_partitions_owned", "ceremony_nats_published_total"


async def shared(site: Site) -> list[int]:
    """Wait until all are ready and each engine owns partitions; return their numbers. Raises BenchmarkFailed."""
    layout, partitions = site.ground.layout, site.ground.partitions

    def spread(said: Said) -> bool:
        owned = _owned(said)
        return sum(owned) == partitions and sum(map(bool, owned)) == layout.members("engine")

    for worker in site.workers:
        await worker.ready()
    said = await until_metrics(site, spread, f"{partitions} partitions shared by {layout}")
    for worker in site.workers:  # a worker that gave some up becomes ready again
        await worker.ready()
    return _owned(said)


def _owned(said: Said) -> list[int]:
    return [int(one.get(OWNED, 0)) for one in said]


async def until_metrics(site: Site, holds: Callable[[Said], bool], what: str) -> Said:
    """Return the workers' metrics once they fulfil `holds`. Raises BenchmarkFailed."""
    deadline = time.monotonic() + SECONDS
    while not holds(said := await metrics(site)):
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"not after {SECONDS:.0f} s: {what}; {site.workers[-1].last_words()}")
        await asyncio.sleep(0.1)
    return said


async def warm_up(site: Site, workload: Workload = MERGES) -> int:
    """Run ceremonies until each bridge has published some events; return the number of messages stored then.

    Raises BenchmarkFailed.
    """
    layout, partitions, topic = site.ground.layout, site.ground.partitions, prefixed(site.ground.name, COMMANDS)
    for number in range(1, ROUNDS + 1):
        before = await metrics(site)
        commands = preload.commands(workload, f"warm-{number}", CEREMONIES, partitions, site.log.partition_of)
        await preload.append(site.log, topic, commands)
        messages = number * CEREMONIES * workload.messages
        await jetstream.until_stored(site.connection, site.workers, messages, SECONDS)
        after = await metrics(site)
        published = [now.get(PUBLISHED, 0) > then.get(PUBLISHED, 0) for then, now in zip(before, after, strict=True)]
        if sum(published) == layout.members("bridge"):
            return messages
    raise BenchmarkFailed(f"not every bridge of {layout} has published events")


async def metrics(site: Site) -> Said:
    """Return the current metrics of each worker."""
    return [await worker.metrics() for worker in site.workers]
