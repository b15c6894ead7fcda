"""The log's clock, estimated by an owner: the last append time it saw, plus the monotonic time since.

Deadlines use it, so that no host's wall clock matters (specification 18.6).
"""

from __future__ import annotations

from ports.clock import Clock


class LogClock:
    """Milliseconds since the epoch on the log's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timestamp = 0
        self._learnt = clock.monotonic()

    def now(self) -> int:
        """Return the present; 0 before the first append time, when nothing is due yet."""
        if not self._timestamp:
            return 0
        return self._timestamp + int((self._clock.monotonic() - self._learnt) * 1000)

    def acknowledged(self, timestamp: int) -> None:
        """Set the present to the append time of a record just written, even when the log's clock went back."""
        self._timestamp, self._learnt = timestamp, self._clock.monotonic()

    def observe(self, timestamp: int) -> None:
        """Advance the present to the append time of a record that was read."""
        if timestamp > self.now():
            self.acknowledged(timestamp)

    def age(self) -> float:
        """Return the seconds since the last append time was seen."""
        return self._clock.monotonic() - self._learnt if self._timestamp else float("inf")
