"""The newest ceremonies of some partitions that match: all rows are looked at in outline, and few keys are kept."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import chain

from ports.clock import Clock
from ports.log import PartitionView
from streams.api import SortKey
from streams.topics import CEREMONIES
from tables.instance import Instance, Outline, decode_outline

SLICE = 500
"""Rows looked at before the loop gets its turn."""


async def newest(
    views: Iterable[PartitionView], wanted: Callable[[Instance | Outline], bool], most: int, clock: Clock
) -> tuple[int, list[SortKey]]:
    """How many match, and the keys of the first `most` of them, in order."""
    rows = chain.from_iterable(view.scan(CEREMONIES, decode_outline) for view in views)
    found: list[SortKey] = []
    total = 0
    for number, (_, row) in enumerate(rows, start=1):
        if wanted(row):
            total += 1
            found.append((-row.created_at, row.instance_id))
        if number % SLICE == 0:
            if len(found) > 2 * most + SLICE:
                found = heapq.nsmallest(most, found)
            await clock.sleep(0)
    return total, heapq.nsmallest(most, found)
