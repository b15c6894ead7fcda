"""The outage of a neighbour in the log: a line when it begins, one each minute that it lasts, and one at its end.

However many calls fail meanwhile, they are only counted, by code.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import structlog

from ports.clock import Clock

SUMMARY_SECONDS = 60.0
# A neighbour that fails again so soon after it was back has to work for as long before it counts as back.
UNSTEADY_SECONDS = 60.0
# For neighbours of which only single calls tell: one call may succeed while others fail.
CALLS_SETTLE_SECONDS = 5.0

# Consequence of an outage of the log, for its lines.
LOG_WAITS = "calls are UNAVAILABLE, and ceremonies go on once it answers"


class NeighbourOutage:
    """The outage of one neighbour. Somebody has to call `failed`, `answered` or `tick` while it lasts."""

    def __init__(self, neighbour: str, clock: Clock, waits: str, *, settle_seconds: float = 0.0) -> None:
        """`waits`: what the outage means for ceremonies. `settle_seconds`: without a failure until it is back."""
        self._neighbour = neighbour
        self._clock = clock
        self._waits = waits
        self._settle_seconds = self._settles_in = settle_seconds
        self.under_way = False
        self._since = self._told_at = 0.0
        self._back_at: float | None = None
        """End of the last outage."""
        self._works_since: float | None = None
        """The first answer after the last failure."""
        self._failures: Counter[str] = Counter()
        """By code, since the last line."""
        self._failures_in_all: Counter[str] = Counter()

    def failed(self, code: str, reason: str) -> None:
        """Note a failed call, or a lost connection."""
        self._works_since = None
        if not self.under_way:
            self._begin(code, reason)
        self._failures[code] += 1
        self._failures_in_all[code] += 1
        self.tick()

    def answered(self) -> None:
        """Note that it works; cheap where no outage is under way."""
        if self.under_way:
            if self._works_since is None:
                self._works_since = self._clock.monotonic()
            self.tick()

    def tick(self) -> None:
        """Write the line that is due, if any."""
        if not self.under_way:
            return
        now = self._clock.monotonic()
        if self._works_since is not None and now - self._works_since >= self._settles_in:
            self._end(now)
        elif now - self._told_at >= SUMMARY_SECONDS:
            self._told_at = now
            failures, self._failures = self._failures, Counter()
            self._tell(
                "neighbour_still_fails",
                seconds=round(now - self._since),
                failures=dict(failures),
                waits=self._waits,
            )

    def _begin(self, code: str, reason: str) -> None:
        self._since = self._told_at = now = self._clock.monotonic()
        unsteady = self._back_at is not None and now - self._back_at < UNSTEADY_SECONDS
        self._settles_in = UNSTEADY_SECONDS if unsteady else self._settle_seconds
        self.under_way = True
        self._failures.clear()
        self._failures_in_all.clear()
        self._tell("neighbour_fails", code=code, reason=reason, waits=self._waits)

    def _end(self, now: float) -> None:
        works_since = now if self._works_since is None else self._works_since
        self.under_way = False
        self._back_at = now
        self._tell(
            "neighbour_back",
            seconds=round(works_since - self._since),
            failures=dict(self._failures_in_all),
        )

    def _tell(self, event: str, **fields: Any) -> None:
        structlog.get_logger(__name__).warning(event, neighbour=self._neighbour, **fields)
