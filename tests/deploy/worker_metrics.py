"""Writes the metrics of a worker that has just run some ceremonies: `python -m tests.deploy.worker_metrics FILE`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.e2e.world import World, until


async def metrics() -> str:
    """Run a worker with a real NATS, let ceremonies of two definitions end, and return its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        async with World(Path(folder), f"sqlite://{folder}/log.db") as world:
            await world.finish(await world.start("backlog_review", "metrics-1"))
            await world.finish(await world.start("merge_chain", "metrics-2"))

            async def measured() -> str:
                _, text = await world.http("/metrics")
                return text if 'ceremony_consumer_lag_records{topic="commands"} 0.0' in text else ""

            found: str = await until(measured, "the lags are measured")
            return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(asyncio.run(metrics()), encoding="utf-8")
