"""Reads the number of events in the stream CEREMONY, and the time at which it stored the last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec
import nats.errors
from nats.aio.client import Client

from tests.benchmarks.processes import BenchmarkFailed, WorkerProcess

LOOK_SECONDS = 0.1


class _State(msgspec.Struct):
    messages: int = 0
    last_ts: datetime | None = None


class _Info(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)


async def stored(connection: Client) -> tuple[int, float]:
    """Return the number of messages and the time of the last, which nats-py's own call leaves out."""
    try:
        answer = await connection.request("$JS.API.STREAM.INFO.CEREMONY", timeout=5)
    except nats.errors.Error:
        return 0, 0.0
    state = msgspec.json.decode(answer.data, type=_Info).state
    return state.messages, state.last_ts.timestamp() if state.last_ts and state.messages else 0.0


async def until_stored(
    connection: Client,
    workers: Sequence[WorkerProcess],
    wanted: int,
    seconds: float,
    progress: Callable[[int], None] = lambda _: None,
) -> float:
    """Return the wall-clock time at which the stream stored the last of `count` events. Raises BenchmarkFailed."""
    deadline = time.monotonic() + seconds
    while True:
        count, last = await stored(connection)
        progress(count)
        if count >= wanted:
            return last
        for worker in workers:
            worker.check()
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"{count} of {wanted} events on NATS after {seconds:.0f} s")
        await asyncio.sleep(LOOK_SECONDS)
