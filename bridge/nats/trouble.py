"""What a stream or a consumer refuses, for readiness and the doctor: the reason, since when, and how much waits."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice

import structlog

from ports.clock import Clock
from streams.envelope import iso

# Reasons in a text; a definition may publish to many streams.
MOST_REASONS = 10

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _One:
    reason: str
    since: int
    """Milliseconds since the epoch."""
    waiting: int
    noted_at: float
    """Monotonic."""


@dataclass(slots=True)
class _Reason:
    since: int
    waiting: int = 0
    keys: int = 0


class Trouble:
    """The troubles of streams: one for each partition or message that cannot be sent, or one for the consumer."""

    def __init__(self, clock: Clock, waits: str, *, kept_seconds: float | None = None) -> None:
        """`waits`: the plural of the things that wait. `kept_seconds`: how long one counts that is not noted again."""
        self._clock = clock
        self._waits = waits
        self._kept_seconds = kept_seconds
        self._troubles: dict[Hashable, _One] = {}
        """The one noted last is the last one."""
        self._reasons: dict[str, _Reason] = {}

    def note(self, key: Hashable, reason: str, waiting: int) -> None:
        """Note a trouble, or its new reason; it lasts since it was first noted."""
        self._forget()
        now = int(self._clock.wall() * 1000)
        if reason not in self._reasons:
            log.warning("nats_refuses", reason=reason, waiting=waiting)
        of_reason = self._reasons.setdefault(reason, _Reason(now))
        of_reason.waiting += waiting
        of_reason.keys += 1
        known = self._take(key)
        of_reason.since = min(of_reason.since, now if known is None else known.since)
        self._troubles[key] = _One(reason, now if known is None else known.since, waiting, self._clock.monotonic())

    def end(self, key: Hashable) -> None:
        ended = self._take(key)
        if ended is not None and ended.reason not in self._reasons:
            log.info("nats_takes_again", reason=ended.reason)

    @property
    def state(self) -> str:
        """For readiness: `ok`, or each reason once, since when, and the number of all that waits for it."""
        self._forget()
        texts = [
            f"{reason}; since {iso(one.since)}, {one.waiting} {self._waits} wait"
            for reason, one in islice(self._reasons.items(), MOST_REASONS)
        ]
        if (more := len(self._reasons) - MOST_REASONS) > 0:
            texts.append(f"and {more} other reasons")
        return "; ".join(texts) or "ok"

    def _take(self, key: Hashable) -> _One | None:
        """Remove a trouble, and its reason with the last one that has it."""
        found = self._troubles.pop(key, None)
        if found is not None:
            of_reason = self._reasons[found.reason]
            of_reason.waiting -= found.waiting
            of_reason.keys -= 1
            if not of_reason.keys:
                del self._reasons[found.reason]
        return found

    def _forget(self) -> None:
        """Forget what has not been noted for long: nobody waits for it any more, or another worker does."""
        if self._kept_seconds is None:
            return
        until = self._clock.monotonic() - self._kept_seconds
        while self._troubles and (oldest := next(iter(self._troubles.items())))[1].noted_at < until:
            self._take(oldest[0])
