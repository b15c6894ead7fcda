"""A steady load on several workers, and the pauses of each partition under it, by the log's timestamps.

`python -m tests.workers.load KAFKA --workers 3` measures SIGTERM and kill -9; with `--static` restarts in place.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

from bridge.clock import HostClock
from streams.topics import EVENTS, SUBJECT
from streams.transport.kafka.log import KafkaLog
from tests.bridge.nats.world import stored
from tests.e2e.world import NO_RETRIES, WorkerProcess, until
from tests.workers.fleet import Fleet, start_request

STARTS_PER_SECOND = 40
AGAIN_SECONDS = 0.05


class Load:
    """Starts ceremonies at a steady rate through all workers, each repeatedly until it is accepted."""

    def __init__(self, fleet: Fleet, name: str = "load") -> None:
        """`name`: first part of the ceremonies' ids."""
        self.fleet = fleet
        self._name = name
        self.started: list[str] = []
        self._stubs: dict[str, Any] = {}
        self._stack = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the load meanwhile; at the end every start begun has been accepted."""
        starts: list[asyncio.Task[None]] = []
        ticking = asyncio.create_task(self._tick(starts))
        async with self._stack:
            try:
                yield
            finally:
                ticking.cancel()
                await asyncio.wait([ticking])
                await asyncio.wait_for(asyncio.gather(*starts), 30)

    async def _tick(self, starts: list[asyncio.Task[None]]) -> None:
        for number in itertools.count():
            starts.append(asyncio.create_task(self._start(number)))
            await asyncio.sleep(1 / STARTS_PER_SECOND)

    async def _start(self, number: int) -> None:
        request = start_request(f"{self._name}-{number}", "merge_chain")
        for attempt in itertools.count(number):
            alive = [process for process in self.fleet.processes if process.running]
            stub = self._stub(alive[attempt % len(alive)].address)
            try:
                self.started.append((await stub.StartPlanningCeremony(request, timeout=5)).instance_id)
                return
            except grpc.aio.AioRpcError as error:
                if error.code().name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    def _stub(self, address: str) -> Any:
        if address not in self._stubs:
            channel = grpc.aio.insecure_channel(address, options=NO_RETRIES)
            self._stack.push_async_callback(channel.close)
            self._stubs[address] = PlanningCeremonyProcessorStub(channel)
        return self._stubs[address]


async def gaps(fleet: Fleet, since_ms: int) -> list[float]:
    """Return for each partition the longest time between two `step.executed` since then, in seconds."""
    log = KafkaLog([fleet.log_url.removeprefix("kafka://")], HostClock())
    await log.start()
    try:
        topic = f"{fleet.prefix}.{EVENTS}"
        longest = []
        for partition, (start, end) in enumerate(await log.ends(topic)):
            times = [
                record.timestamp
                async for records in log.read(topic, partition, start, end)
                for record in records
                if dict(record.headers)[SUBJECT] == b"ceremony.step.executed" and record.timestamp >= since_ms
            ]
            longest.append(max((b - a for a, b in itertools.pairwise([since_ms, *times])), default=0) / 1000)
        return longest
    finally:
        await log.stop()


async def accounted(fleet: Fleet, started: Sequence[str]) -> dict[str, int]:
    """Wait until every start has ended on CEREMONY; return the number of each effect id that is not there once."""
    seen: dict[str, int] = {}

    async def all_ended() -> bool:
        seen.clear()
        ended = set()
        for message in await stored(fleet.nats.url):
            key = (message.headers or {})["Nats-Msg-Id"]
            seen[key] = seen.get(key, 0) + 1
            if message.subject == "ceremony.completed":
                ended.add(json.loads(message.data)["payload"]["instance_id"])
        return ended >= set(started)

    await until(all_ended, "every start has ended", 40)
    return {key: count for key, count in seen.items() if count > 1}


async def measured(fleet: Fleet, seconds: float) -> list[float]:
    """Return the longest pause of each partition in the next seconds."""
    since = int(time.time() * 1000)
    await asyncio.sleep(seconds)
    return await gaps(fleet, since)


async def _report(fleet: Fleet, what: str, seconds: float) -> None:
    pauses = await measured(fleet, seconds)
    print(f"{what}: longest pause {max(pauses):.2f} s; by partition {pauses}", flush=True)


async def _measure(kafka: str, workers: int, runs: int, *, static: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Fleet(Path(folder) / "fleet", kafka) as fleet:
            names = [{"WORKER_ID": f"w{number}"} if static else {} for number in range(workers)]
            processes: list[WorkerProcess] = [await fleet.process(**name) for name in names]
            for process in processes:
                await process.ready()
            load = Load(fleet)
            async with load.running():
                await _report(fleet, "undisturbed", 5)
                for run in range(runs):
                    process = processes[run % workers]
                    if static:
                        process.terminate()
                        process.start()
                        await _report(fleet, "restart in place", 10)
                        continue
                    stopping = asyncio.create_task(asyncio.to_thread(process.terminate))
                    await _report(fleet, "SIGTERM", 10)
                    await stopping
                    process.start()
                    await process.ready()
                    await _report(fleet, "joined again", 5)
                    process.kill()
                    await _report(fleet, "kill -9", 15)
                    process.start()
                    await process.ready()
            twice = await accounted(fleet, load.started)
            print(f"{len(load.started)} started, all ended; effect ids on CEREMONY more than once: {len(twice)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kafka", help="host:port")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--static", action="store_true")
    given = parser.parse_args()
    asyncio.run(_measure(given.kafka, given.workers, given.runs, static=given.static))
