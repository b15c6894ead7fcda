"""Whether a new ceremony is taken now: not while its partition lags, nor while too many starts wait for an answer.

What is refused was never appended, so nothing accepted is lost. Running ceremonies are never refused: what they wait
for is what makes the lag smaller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from streams.front import Overloaded

WAITING_STARTS = 3_000
"""Starts that may wait for their answer in one worker: each holds a call of gRPC, some 22 KiB."""
SHORTEST_HINT, LONGEST_HINT = 0.5, 5.0
"""Seconds after which a refused start may be tried again."""


class Admission:
    """The lag of each partition as this worker knows it without asking the log, and the starts that wait."""

    def __init__(self, limit: int) -> None:
        """`limit`: records of a partition that may wait to be folded; 0 sets none."""
        self._limit = limit
        self._ends: dict[int, int] = {}
        self._under_way: dict[int, int] = {}
        self._waiting = 0

    def appended(self, partition: int, offset: int) -> None:
        """A record was acknowledged at this offset: the log reaches so far at least."""
        if offset >= self._ends.get(partition, 0):
            self._ends[partition] = offset + 1

    def taken(self, partition: int, end: int) -> None:
        """The partition was taken with this log end: what was known of it before may be of another log."""
        self._ends[partition] = end

    def lag(self, partition: int, position: int) -> int:
        """Records known to be in the log and not folded, with those on their way to it."""
        return max(0, self._ends.get(partition, 0) - position) + self._under_way.get(partition, 0)

    @contextlib.contextmanager
    def start(self, partition: int, position: int) -> Iterator[None]:
        """Hold a place for a start until it is answered. Raises Overloaded."""
        self._check(partition, position)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextlib.contextmanager
    def appending(self, partition: int) -> Iterator[None]:
        """A record is on its way to the log."""
        self._under_way[partition] = self._under_way.get(partition, 0) + 1
        try:
            yield
        finally:
            self._under_way[partition] -= 1

    def _check(self, partition: int, position: int) -> None:
        lag = self.lag(partition, position)
        if self._limit and lag >= self._limit:
            seconds = min(LONGEST_HINT, max(SHORTEST_HINT, lag / self._limit))
            raise Overloaded(f"partition {partition} has {lag} records to fold, {self._limit} are the limit", seconds)
        if self._waiting >= WAITING_STARTS:
            raise Overloaded(f"{WAITING_STARTS} starts wait for their answer at this worker", SHORTEST_HINT)
