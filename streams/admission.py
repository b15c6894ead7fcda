"""Whether a new ceremony is taken now: not while its partition lags, nor while too many starts wait for an answer.

What is refused was never appended, so nothing accepted is lost. Running ceremonies are never refused: what they wait
for is what makes the lag smaller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from ports.clock import Clock
from streams.api import Overloaded

# Starts that may wait for their answer in one worker, the work of some seconds: each holds a call of gRPC, 22 KiB.
WAITING_STARTS = 3_000
# Seconds after which a refused start may be tried again.
SHORTEST_HINT_SECONDS, LONGEST_HINT_SECONDS = 0.5, 60.0
# Starts a second that are expected at least: of a worker that has just begun, nothing is known.
LEAST_STARTS_PER_SECOND = 300.0
# How many more are asked to come back than were answered lately: not all do, and none should find nobody there.
OVERBOOKING = 1.5
MEASURED_SECONDS = 1.0


class RetryHints:
    """When refused starts may come back: one after the other, about as fast as starts are answered.

    With one hint for all, 20,000 refused callers would come together again, and the worker would do nothing but refuse.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rate = LEAST_STARTS_PER_SECOND
        self._answered = 0
        self._since = clock.monotonic()
        self._next = 0.0

    def answered(self) -> None:
        self._answered += 1

    def seconds(self) -> float:
        """From now, for one more that is refused."""
        now = self._clock.monotonic()
        if (past := now - self._since) >= MEASURED_SECONDS:
            self._rate = max(LEAST_STARTS_PER_SECOND, (self._rate + self._answered / past) / 2)
            self._answered, self._since = 0, now
        turn = max(self._next, now + SHORTEST_HINT_SECONDS)
        self._next = min(turn + 1 / (self._rate * OVERBOOKING), now + LONGEST_HINT_SECONDS)
        return turn - now


class Admission:
    """The lag of each partition as this worker knows it without asking the log, and the starts that wait."""

    def __init__(self, limit: int, clock: Clock) -> None:
        """`limit`: records of a partition that may wait to be folded; 0 sets none."""
        self._limit = limit
        self._retry_hints = RetryHints(clock)
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
        if self._waiting >= WAITING_STARTS:
            raise self._no_room()
        if self._lags(partition, position):
            lag = self.lag(partition, position)
            text = f"partition {partition} has {lag} records to fold, {self._limit} are the limit"
            raise Overloaded(text, self._retry_hints.seconds())
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._retry_hints.answered()

    def closed(self, calls: int, positions: Iterable[tuple[int, int]] | None) -> Overloaded | None:
        """Why no start is taken, whatever its partition; `calls` are unanswered, those of other workers among them.

        `positions`: (partition, position) of all there are; None where some are another worker's.
        """
        if calls >= WAITING_STARTS:
            return self._no_room()
        if positions is not None and all(self._lags(*one) for one in positions):
            text = f"every partition has {self._limit} records to fold or more, which are the limit"
            return Overloaded(text, self._retry_hints.seconds())
        return None

    @contextlib.contextmanager
    def appending(self, partition: int) -> Iterator[None]:
        """A record is on its way to the log."""
        self._under_way[partition] = self._under_way.get(partition, 0) + 1
        try:
            yield
        finally:
            self._under_way[partition] -= 1

    def _lags(self, partition: int, position: int) -> bool:
        return bool(self._limit) and self.lag(partition, position) >= self._limit

    def _no_room(self) -> Overloaded:
        return Overloaded(f"{WAITING_STARTS} starts wait for their answer at this worker", self._retry_hints.seconds())
