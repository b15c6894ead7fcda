"""The clock of the embedded log, which stamps its records."""

from __future__ import annotations

from ports.clock import Clock


class AppendClock:
    """Milliseconds since the epoch that never go back and never stand still.

    It follows the host's wall clock when that is ahead. After the wall clock was set back, it continues at the pace of
    the monotonic clock: a clock that stood still until the wall clock caught up would delay every deadline as long.
    """

    def __init__(self, clock: Clock, last: int) -> None:
        """`last`: the last timestamp in the log."""
        self._clock = clock
        self._exact = float(last)
        self._read_at = clock.monotonic()

    def now(self) -> int:
        monotonic = self._clock.monotonic()
        flown = self._exact + (monotonic - self._read_at) * 1000
        self._read_at = monotonic
        self._exact = max(flown, self._clock.wall() * 1000)
        return int(self._exact)
