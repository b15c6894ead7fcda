"""Admission of new ceremonies: refused while the partition lags or too many starts wait for an answer.

A refused start was never appended, so nothing accepted is lost. Commands of running ceremonies are never refused,
because they are needed to reduce the lag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from ports.clock import Clock
from streams.api import Overloaded

# Starts that may wait for their answer in one worker, about some seconds of work. Each holds a gRPC call of 22 KiB.
WAITING_STARTS = 3_000
# Bounds of the hint when a refused start may be tried again.
SHORTEST_HINT_SECONDS, LONGEST_HINT_SECONDS = 0.5, 60.0
# Lower bound of the measured rate, also used before anything was measured.
LEAST_STARTS_PER_SECOND = 300.0
# Ratio of callers invited per second to starts answered per second, as not every invited caller returns.
OVERBOOKING = 1.5
MEASURED_SECONDS = 1.0


class RetryHints:
    """Retry hints for refused starts, spread at about the rate at which starts are answered.

    With the same hint for all, 20,000 refused callers would return together and the worker would only refuse.
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
        """Return the hint for one more refused start, in seconds from now."""
        now = self._clock.monotonic()
        if (past := now - self._since) >= MEASURED_SECONDS:
            self._rate = max(LEAST_STARTS_PER_SECOND, (self._rate + self._answered / past) / 2)
            self._answered, self._since = 0, now
        turn = max(self._next, now + SHORTEST_HINT_SECONDS)
        self._next = min(turn + 1 / (self._rate * OVERBOOKING), now + LONGEST_HINT_SECONDS)
        return turn - now


class Admission:
    """Counts the lag of each partition, without asking the log, and the starts that wait for an answer."""

    def __init__(self, limit: int, clock: Clock) -> None:
        """`limit`: unfolded records of a partition from which on starts are refused; 0 sets none."""
        self._limit = limit
        self._retry_hints = RetryHints(clock)
        self._ends: dict[int, int] = {}
        self._under_way: dict[int, int] = {}
        self._waiting = 0

    def appended(self, partition: int, offset: int) -> None:
        """Note an acknowledged record: the log reaches at least to its offset."""
        if offset >= self._ends.get(partition, 0):
            self._ends[partition] = offset + 1

    def taken(self, partition: int, end: int) -> None:
        """Note the log end of a partition that was taken. It replaces older knowledge, which may be of another log."""
        self._ends[partition] = end

    def known_end(self, partition: int) -> int:
        """Return the log end as far as it is known: behind the last record acknowledged here or seen at take-over."""
        return self._ends.get(partition, 0)

    def lag(self, partition: int, position: int) -> int:
        """Count records known to be in the log or on their way to it, and not folded yet."""
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

    def overload(self, calls: int, positions: Iterable[tuple[int, int]] | None) -> Overloaded | None:
        """Return the refusal that applies to every start now, or None.

        `calls`: unanswered calls, including those forwarded to other workers. `positions`: (partition, position) of
        all partitions; None when another worker owns some of them.
        """
        if calls >= WAITING_STARTS:
            return self._no_room()
        if positions is not None and all(self._lags(*one) for one in positions):
            text = f"every partition has {self._limit} records to fold or more, which are the limit"
            return Overloaded(text, self._retry_hints.seconds())
        return None

    @contextlib.contextmanager
    def appending(self, partition: int) -> Iterator[None]:
        """Count a record that is on its way to the log."""
        self._under_way[partition] = self._under_way.get(partition, 0) + 1
        try:
            yield
        finally:
            self._under_way[partition] -= 1

    def _lags(self, partition: int, position: int) -> bool:
        return bool(self._limit) and self.lag(partition, position) >= self._limit

    def _no_room(self) -> Overloaded:
        return Overloaded(f"{WAITING_STARTS} starts wait for their answer at this worker", self._retry_hints.seconds())
