"""Merges the matches of several partitions or workers."""

from __future__ import annotations

import heapq
from collections.abc import Generator, Sequence
from itertools import islice

from streams.api import Matches, SortKey

# Keys merged before other tasks get the event loop.
KEYS_PER_TURN = 500


def merged(parts: Sequence[Matches], most: int) -> Generator[None, None, Matches]:
    """Return the first `most` matches of all parts; yields after each piece of work.

    Behind the first place at which a part stopped, another match of it may be missing, so the result stops there.
    """
    stops = [part.stopped for part in parts if part.stopped is not None]
    stopped = min(stops, default=None)
    keys: list[SortKey] = []
    for key in islice(heapq.merge(*(part.keys for part in parts)), most):
        if stopped is not None and key > stopped:
            break
        keys.append(key)
        if len(keys) % KEYS_PER_TURN == 0:
            yield
    if len(keys) == most and (stopped is not None or sum(len(part.keys) for part in parts) > most):
        stopped = keys[-1] if keys else stopped
    total = sum(part.total for part in parts)
    return Matches(total, all(part.exact for part in parts), keys, stopped)
