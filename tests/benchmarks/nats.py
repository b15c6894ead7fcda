"""Measures the cost of a message at the NATS bridges: `python -m tests.benchmarks.nats`.

On a real nats-server: the events bridge is handed batches of the events of chains, as its follower would hand them; and
the agents' answers, stored before, are pulled and appended to a log that takes them at once. CPU time, of our process
and of the nats-server, per message: wall time says little on a machine that is shared.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvloop
from nats import connect

from bridge.clock import HostClock
from bridge.nats.connection import NatsConnection
from bridge.nats.events import EventsBridge
from bridge.nats.response_messages import BACKLOG_REVIEW
from bridge.nats.responses import AgentResponses
from bridge.nats.streams import AGENT_RESPONSES
from bridge.nats.window import WINDOW
from ports.log import Committed, Log, Record
from steps.secrets.redactor import TextRedactor
from streams.envelope import envelope, event_record
from streams.topics import EVENTS, prefixed
from tables.effects import Event
from tests.benchmarks import processes
from tests.benchmarks.meter import cpu_seconds

PREFIX = "bench"
TOPIC = prefixed(PREFIX, EVENTS)
# Ceremonies of a partition that run at the same time.
GROUP = 250
# Records that the log hands over at once.
BATCH = 500
WARM_UP = 5_000
# Events of each command of a chain: started, five steps executed, the transition, the end.
AT_ONCE = (8,)
# The same where the agent of each step is asked: with the last step the transition and the end.
ASKED = (1, 1, 1, 1, 1, 3)
Handle = Callable[[Sequence[Record]], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a message in one run."""

    ours_us: float
    server_us: float
    wall_us: float


class _Followed:
    """A log's follower that hands over the batches of the benchmark."""

    fresh = True

    async def stop(self) -> None: ...


class _FedLog:
    """The part of a log that the events bridge uses."""

    def __init__(self) -> None:
        self.handle: Handle | None = None
        self.taken: Callable[[Committed], Awaitable[None]] | None = None

    async def follow(self, group: str, topic: str, handle: Handle, *, batch: int, taken: Any) -> _Followed:
        if topic == TOPIC:
            self.handle, self.taken = handle, taken
        return _Followed()


def batches(run: str, partition: int, count: int, commands: Sequence[int], first: int) -> Iterator[list[Record]]:
    """Return about `count` events of a partition, in the fold's order; `first`: offset of the first."""
    batch: list[Record] = []
    groups = -(-count // (GROUP * sum(commands)))
    offset = command_offset = first
    for group in range(groups):
        done = [0] * GROUP
        for events in commands:
            for ceremony in range(GROUP):
                for ordinal in range(events):
                    one = _event(f"{run}-{partition}-{group * GROUP + ceremony}:S", done[ceremony])
                    key, value, headers = event_record(one, command_offset, ordinal, 1)
                    batch.append(Record(TOPIC, partition, offset, int(time.time() * 1000), key, value, headers))
                    done[ceremony] += 1
                    offset += 1
                command_offset += 1
                if len(batch) >= BATCH:
                    yield batch
                    batch = []
    if batch:
        yield batch


def _event(instance: str, number: int) -> Event:
    """An event as large as `ceremony.step.executed` of the chain: some 490 bytes of JSON."""
    return Event(
        id=f"{instance}/{number}/0@1",
        subject="ceremony.step.executed",
        instance_id=instance,
        correlation_id=instance,
        at=1_769_860_800_000 + number,
        payload={
            "instance_id": instance,
            "ceremony_id": instance.partition(":")[0],
            "story_id": "S",
            "step_id": f"step_{number}",
            "status": "COMPLETED",
            "attempt": 1,
            "output": {"text": "x" * 80, "merged": "x" * 70},
        },
    )


async def events_out(
    server: processes.MeasuredNats, count: int, commands: Sequence[int], partitions: int, window: int
) -> Cost:
    """Publish `count` events, after a warm-up, on one connection and a stream of their own."""
    log, link = _FedLog(), NatsConnection(server.url, HostClock())
    bridge = EventsBridge(cast(Log, log), link, HostClock(), prefix=PREFIX, redactor=TextRedactor(), window=window)
    await link.start()
    await bridge.start()
    assert log.handle is not None and log.taken is not None
    try:
        for partition in range(partitions):
            await log.taken(Committed(partition, 0, "", 0))
        await _publish(log.handle, "warm", WARM_UP, commands, partitions, first=0)
        return await _publish(log.handle, "run", count, commands, partitions, first=10 * count, pid=server.pid)
    finally:
        await bridge.stop()
        await link.stop()


async def answers_in(server: processes.MeasuredNats, count: int) -> Cost:
    """Pull `count` answers of agents from the stream, and acknowledge each when the log has taken it."""
    await _store_answers(server.url, count)
    log, link = _TakingLog(count), NatsConnection(server.url, HostClock())
    bridge = AgentResponses(cast(Log, log), link, HostClock(), prefix=PREFIX, partitions=4)
    await link.start()
    await link.connected()
    gc.collect()
    gc.freeze()
    meter = _Meter(server.pid)
    await bridge.start()
    try:
        await log.taken.wait()
        return meter.per(count)
    finally:
        await bridge.stop()
        await link.stop()


class _TakingLog:
    """The part of a log that the agents' answers need; it acknowledges in the loop's next turn."""

    def __init__(self, wanted: int) -> None:
        self.taken = asyncio.Event()
        self._left = wanted

    def partition_of(self, key: bytes, partitions: int) -> int:
        return len(key) % partitions

    async def append(self, *_: object) -> None:
        await asyncio.sleep(0)
        self._left -= 1
        if not self._left:
            self.taken.set()


async def _store_answers(url: str, count: int) -> None:
    link = await connect(url)
    for number in range(count):
        await link.publish(BACKLOG_REVIEW, _answer(number))
        if number % 1000 == 0:
            await link.flush()
    while (await link.jetstream().stream_info(AGENT_RESPONSES)).state.messages < count:
        await asyncio.sleep(0.05)
    await link.close()


def _answer(number: int) -> bytes:
    """An answer of a reviewing agent; some 800 bytes."""
    payload = {
        "task_id": f"ceremony-c-{number}:story-S:role-DEVELOPER:step-review:attempt-1",
        "agent_id": "agent-developer-001",
        "role": "DEVELOPER",
        "status": "completed",
        "proposal": {"title": "t" * 60, "description": "d" * 300, "risks": ["r" * 40] * 3},
        "trigger": "deliberated",
    }
    return envelope(BACKLOG_REVIEW, payload, f"answer-{number}", f"corr-{number}", 1_769_860_800_000)


async def _publish(
    handle: Handle,
    run: str,
    count: int,
    commands: Sequence[int],
    partitions: int,
    *,
    first: int,
    pid: int | None = None,
) -> Cost:
    given = [list(batches(run, n, count // partitions, commands, first)) for n in range(partitions)]

    async def feed(mine: list[list[Record]]) -> None:
        for batch in mine:
            await handle(batch)

    gc.collect()
    gc.freeze()
    meter = _Meter(pid)
    await asyncio.gather(*map(feed, given))
    return meter.per(sum(len(batch) for mine in given for batch in mine))


class _Meter:
    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._began = self._now()

    def _now(self) -> tuple[float, float, float]:
        server = cpu_seconds(self._pid) if self._pid is not None else 0.0
        return time.process_time(), server, time.perf_counter()

    def per(self, count: int) -> Cost:
        return Cost(*(1e6 * (now - then) / count for now, then in zip(self._now(), self._began, strict=True)))


async def measure(given: argparse.Namespace) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {"events out": [], "answers in": []}
    for _ in range(given.repetitions):
        with tempfile.TemporaryDirectory(prefix="ceremony-nats-bench-") as folder:
            async with processes.nats(Path(folder), sync_always=given.sync_always) as server:
                commands = ASKED if given.asked else AT_ONCE
                costs["events out"].append(
                    await events_out(server, given.events, commands, given.partitions, given.window)
                )
                costs["answers in"].append(await answers_in(server, given.answers))
    return costs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.nats", description=__doc__)
    parser.add_argument("--events", type=int, default=30_000, help="events of a run (default 30000)")
    parser.add_argument("--asked", action="store_true", help="send the events of steps that ask their agent")
    parser.add_argument("--answers", type=int, default=10_000, help="answers of a run (default 10000)")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--window", type=int, default=WINDOW, help=f"messages in flight a partition (default {WINDOW})")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sync-always", action="store_true", help="nats-server syncs each message")
    given = parser.parse_args()
    gc.set_threshold(50_000, 20, 50)  # as the worker does
    for name, costs in uvloop.run(measure(given)).items():
        _show(name, costs)
    return 0


def _show(name: str, costs: Sequence[Cost]) -> None:
    print(f"{name}: µs a message, median (lowest-highest) of {len(costs)} runs")
    for label, field in (("CPU, ours", "ours_us"), ("CPU, nats-server", "server_us"), ("wall", "wall_us")):
        values = sorted(getattr(cost, field) for cost in costs)
        print(f"  {label:17} {statistics.median(values):6.1f} ({values[0]:.1f}-{values[-1]:.1f})")


if __name__ == "__main__":
    sys.exit(main())
