"""The log's clock, estimated by an owner: the last append time it saw, plus the monotonic time since.

Deadlines use it, so that no host's wall clock matters (specification 18.6).
"""

from __future__ import annotations

from typing import NamedTuple

import structlog

from ports.clock import Clock
from tables.timers import CLOCK_AHEAD_MS

log = structlog.get_logger(__name__)


class ClockAhead(NamedTuple):
    """A clock of the log that was ahead."""

    by: int
    """Milliseconds."""
    at: int
    """Time in milliseconds, by the clock that was right."""


# How long a clock that was ahead is remembered.
REMEMBERED_MS = 24 * 3600 * 1000


class LogClock:
    """Milliseconds since the epoch on the log's clock.

    An append time far ahead of the expected one may come from one broker whose clock is wrong. It counts only when the
    next one agrees with it; until then `age` asks for the next one.
    """

    def __init__(self, clock: Clock, report: LogClock | None = None) -> None:
        """`report`: the clock whose `ahead` is set too."""
        self._clock = clock
        self._report = report
        self._timestamp = 0
        self._learnt = clock.monotonic()
        self._own = False
        """True once the clock was set by an acknowledgement: records that were read may be old."""
        self._doubted: tuple[int, float] | None = None
        """An append time that waits to be confirmed, with its monotonic time."""
        self.set_backs = 0
        """Number of times that the clock went back by more than CLOCK_AHEAD_MS."""
        self.ahead: ClockAhead | None = None
        """The last clock that was found to be ahead."""

    def ahead_lately(self) -> ClockAhead | None:
        """Return the last clock that was found to be ahead within a day."""
        return self.ahead if self.ahead is not None and self.now() - self.ahead.at < REMEMBERED_MS else None

    def now(self) -> int:
        """Return the present; 0 before the first append time, when nothing is due yet."""
        return self._later(self._timestamp, self._learnt) if self._timestamp else 0

    def _later(self, timestamp: int, learnt: float) -> int:
        return timestamp + int((self._clock.monotonic() - learnt) * 1000)

    def acknowledged(self, timestamp: int) -> None:
        """Set the present to the append time of a record just written, even when the log's clock went back."""
        first = not self._own
        self._own = True
        if first:
            self._set(timestamp)
        else:
            self._adopt(timestamp)

    def observe(self, timestamp: int) -> None:
        """Advance the present to the append time of a record that was read."""
        if timestamp <= self.now():
            return
        if self._own:
            self._adopt(timestamp)
        else:
            self._set(timestamp)

    def age(self) -> float:
        """Return the seconds since the last append time was seen; infinite while there is none to be trusted."""
        trusted = self._timestamp and self._doubted is None
        return self._clock.monotonic() - self._learnt if trusted else float("inf")

    def _adopt(self, timestamp: int) -> None:
        expected = self.now()
        if timestamp - expected > CLOCK_AHEAD_MS and not self._confirms(timestamp):
            self._doubted = (timestamp, self._clock.monotonic())
            return
        if self._doubted is not None and not self._confirms(timestamp):
            self._noticed(self._later(*self._doubted) - timestamp, timestamp)
        if expected - timestamp > CLOCK_AHEAD_MS:
            self.set_backs += 1
            self._noticed(expected - timestamp, timestamp)
        self._set(timestamp)

    def _set(self, timestamp: int) -> None:
        self._timestamp, self._learnt, self._doubted = timestamp, self._clock.monotonic(), None

    def _confirms(self, timestamp: int) -> bool:
        return self._doubted is not None and abs(self._later(*self._doubted) - timestamp) <= CLOCK_AHEAD_MS

    def _noticed(self, by: int, at: int) -> None:
        log.warning("clock_ahead", seconds=by // 1000)
        self.ahead = ClockAhead(by, at)
        if self._report is not None:
            self._report.ahead = self.ahead
