"""Names and durations of the timers in a row, in milliseconds; times as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from tables.instance import Phase

# Each followed by the step's id.
TIMEOUT, RETRY, ASK, GATE = "timeout/", "retry/", "ask/", "gate/"
CEREMONY_MAX = "ceremony_max"
EXPIRE = "expire"
# Timers that a pause does not stop.
RUN_ON = frozenset({CEREMONY_MAX, EXPIRE})

# Which timers the live attempt of a step may hold in each phase; a gate's only where it has a deadline.
OF_PHASE = {
    Phase.NONE: (),
    Phase.ASKED: (TIMEOUT,),
    Phase.SUBMITTED: (TIMEOUT,),
    Phase.UNREACHABLE: (TIMEOUT, ASK),
    Phase.BACKOFF: (RETRY,),
    Phase.GATE: (GATE,),
}

DAY = 86_400_000
# A hundred years: what a definition may ask for stays a number the row can hold.
_LONGEST = 36_525 * DAY


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last millisecond of the year 9999: ISO-8601 has four digits for a year.
_LATEST = 253_402_300_799_999


@lru_cache(maxsize=256)  # the log gives a whole batch one time
def iso(at: int) -> str:
    """Milliseconds since the epoch as every time outside is written: ISO-8601 in UTC, `2026-01-31T12:00:00.123Z`."""
    moment = _EPOCH + timedelta(milliseconds=min(max(at, 0), _LATEST))
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


@lru_cache(maxsize=1024)  # definitions name few durations, and each attempt asks for one
def millis(seconds: float) -> int:
    """Whole milliseconds, at least 0 and at most a hundred years."""
    return int(min(max(seconds * 1000.0, 0.0), _LONGEST))
