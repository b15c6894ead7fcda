"""Times at which starts were accepted and messages stored, as the neighbours saw them."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nats
import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

STREAM = "CEREMONY"
BATCH = 1000


class Pause(NamedTuple):
    """The longest time without an event: its seconds, and its beginning in Unix time."""

    seconds: float
    began: float


async def stored_at(url: str, since: float) -> list[float]:
    """Return the times at which CEREMONY stored its messages since `since`, by the server's clock (Unix time)."""

    async def quiet(_: Exception) -> None: ...

    client = await nats.connect(url, error_cb=quiet)
    try:
        jetstream = client.jetstream(timeout=10)
        last = (await jetstream.stream_info(STREAM)).state.last_seq
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, headers_only=True)
        subscription = await jetstream.pull_subscribe("", stream=STREAM, config=config)
        found: list[float] = []
        seen = 0
        while seen < last:
            with contextlib.suppress(nats.errors.TimeoutError):
                for message in await subscription.fetch(BATCH, timeout=2):
                    seen = message.metadata.sequence.stream
                    found.append(message.metadata.timestamp.timestamp())
        return [at for at in found if at >= since]
    finally:
        await client.close()


def accepted_at(starts: Path) -> list[float]:
    """Return the times at which starts were accepted (Unix time), in order."""
    return sorted(json.loads(line)["at"] for line in starts.read_text().splitlines())


def first_after(times: Sequence[float], moment: float) -> float | None:
    """Return the seconds from `moment` to the first of the sorted `times` after it."""
    index = bisect.bisect_right(times, moment)
    return times[index] - moment if index < len(times) else None


def longest_pause(times: Sequence[float], began: float, ended: float) -> Pause:
    """Return the longest pause between two of the sorted `times` in a span, or between one of them and an end of it."""
    inside = [began, *times[bisect.bisect_left(times, began) : bisect.bisect_right(times, ended)], ended]
    return max(Pause(after - before, before) for before, after in itertools.pairwise(inside))
