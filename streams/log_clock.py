"""The log's clock as an owner knows it: the last append time it learnt, plus monotonic time since.

Deadlines are judged by it, so that no host's wall clock matters (specification 18.6).
"""

from __future__ import annotations

from ports.clock import Clock


class LogClock:
    """Milliseconds since the epoch, as the log counts them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timestamp = 0
        self._learnt = clock.monotonic()

    def now(self) -> int:
        """0 before anything was learnt: then nothing is due yet."""
        if not self._timestamp:
            return 0
        return self._timestamp + int((self._clock.monotonic() - self._learnt) * 1000)

    def acknowledged(self, timestamp: int) -> None:
        """An append of ours was just given this append time: that is the present, also where it went back."""
        self._timestamp, self._learnt = timestamp, self._clock.monotonic()

    def read(self, timestamp: int) -> None:
        """A record with this append time was read: the present is not earlier."""
        if timestamp > self.now():
            self.acknowledged(timestamp)

    def age(self) -> float:
        """Seconds since something was learnt last."""
        return self._clock.monotonic() - self._learnt if self._timestamp else float("inf")
