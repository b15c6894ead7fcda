"""Timers of a row: their names, their durations in milliseconds, and times as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from tables.instance import Phase

# Prefixes of timer ids; the step's id follows.
TIMEOUT, RETRY, ASK, GATE = "timeout/", "retry/", "ask/", "gate/"
CEREMONY_MAX = "ceremony_max"
EXPIRE = "expire"
# Timers that a pause does not stop.
RUN_ON = frozenset({CEREMONY_MAX, EXPIRE})

# The timers that the live attempt of a step may hold in each phase; a gate has one only with a deadline.
OF_PHASE = {
    Phase.NONE: (),
    Phase.ASKED: (TIMEOUT,),
    Phase.SUBMITTED: (TIMEOUT,),
    Phase.UNREACHABLE: (TIMEOUT, ASK),
    Phase.BACKOFF: (RETRY,),
    Phase.GATE: (GATE,),
}

DAY_MS = 86_400_000
# Brokers' clocks differ by less; a row or a record that is further in the future comes from a clock that was ahead.
CLOCK_AHEAD_MS = 10_000
# A hundred years, so that every duration of a definition is a number that the row can hold.
_LONGEST_MS = 36_525 * DAY_MS


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last millisecond of the year 9999: ISO-8601 has four digits for a year.
_LATEST_MS = 253_402_300_799_999


@lru_cache(maxsize=256)  # the log gives a whole batch one time
def iso(at: int) -> str:
    """Format milliseconds since the epoch as ISO-8601 in UTC: `2026-01-31T12:00:00.123Z`."""
    moment = _EPOCH + timedelta(milliseconds=min(max(at, 0), _LATEST_MS))
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


@lru_cache(maxsize=1024)  # definitions name few durations, and each attempt asks for one
def millis(seconds: float) -> int:
    """Return whole milliseconds, at least 0 and at most a hundred years."""
    return int(min(max(seconds * 1000.0, 0.0), _LONGEST_MS))
