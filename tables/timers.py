"""Names and durations of the timers in a row, and the pauses before an attempt is repeated. All in milliseconds."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from tables.definition import RetryPolicy
from tables.instance import Phase

TIMEOUT, RETRY, ASK, GATE = "timeout/", "retry/", "ask/", "gate/"
"""Each followed by the step's id."""
CEREMONY_MAX = "ceremony_max"
EXPIRE = "expire"
RUN_ON = frozenset({CEREMONY_MAX, EXPIRE})
"""Timers that a pause does not stop."""

OF_PHASE = {
    Phase.NONE: (),
    Phase.ASKED: (TIMEOUT,),
    Phase.SUBMITTED: (TIMEOUT,),
    Phase.UNREACHABLE: (TIMEOUT, ASK),
    Phase.BACKOFF: (RETRY,),
    Phase.GATE: (GATE,),
}
"""Which timers the live attempt of a step may hold in each phase; a gate's only where it has a deadline."""

DAY = 86_400_000
UNTIL_STUB = 30 * DAY
UNTIL_TOMBSTONE = 365 * DAY
ASK_FIRST, ASK_LONGEST = 1_000, 30_000
_LONGEST = 36_525 * DAY
"""A hundred years: what a definition may ask for stays a number the row can hold."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = 253_402_300_799_999
"""The last millisecond of the year 9999: ISO-8601 has four digits for a year."""


@lru_cache(maxsize=256)  # the log gives a whole batch one time
def iso(at: int) -> str:
    """Milliseconds since the epoch as every time outside is written: ISO-8601 in UTC, `2026-01-31T12:00:00.123Z`."""
    moment = _EPOCH + timedelta(milliseconds=min(max(at, 0), _LATEST))
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


@lru_cache(maxsize=1024)  # definitions name few durations, and each attempt asks for one
def millis(seconds: float) -> int:
    """Whole milliseconds, at least 0 and at most a hundred years."""
    return int(min(max(seconds * 1000.0, 0.0), _LONGEST))


def ask_pause(asks: int) -> int:
    """Before a neighbour out of reach is asked again, after `asks` times in vain: 1, 2, 4 … 30 s."""
    return min(ASK_FIRST << min(max(asks - 1, 0), 16), ASK_LONGEST)


def retry_pause(policy: RetryPolicy, tries: int, instance_id: str, step_id: str, attempt: int) -> int:
    """Before the attempt after the `tries`-th of a budget (specification 11.4).

    `jitter` takes up to its fraction off the pause, by a hash of (instance, step, attempt): never longer than written.
    """
    seconds = float(policy.backoff_seconds)
    if policy.exponential_backoff:
        seconds *= 2.0 ** min(max(tries - 1, 0), 64)
    if policy.max_backoff_seconds is not None:
        seconds = min(seconds, policy.max_backoff_seconds)
    if policy.jitter:
        digest = hashlib.sha256(f"{instance_id}/{step_id}/{attempt}".encode()).digest()
        seconds *= 1.0 - policy.jitter * (int.from_bytes(digest[:8], "big") / 2**64)
    return millis(seconds)
