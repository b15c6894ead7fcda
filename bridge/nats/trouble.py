"""What a stream or a consumer refuses, for readiness and the doctor: the reason, since when, and how much waits."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import structlog

from ports.clock import Clock
from streams.envelope import iso

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _One:
    reason: str
    since: int
    """Milliseconds since the epoch."""
    waiting: int


class Trouble:
    """The troubles of one stream: one for each partition that cannot be sent, or one for the consumer."""

    def __init__(self, clock: Clock, waits: str) -> None:
        """`waits`: the plural of the things that wait."""
        self._clock = clock
        self._waits = waits
        self._troubles: dict[Hashable, _One] = {}

    def note(self, key: Hashable, reason: str, waiting: int) -> None:
        """Note a trouble, or its new reason; it lasts since it was first noted."""
        known = self._troubles.get(key)
        if reason not in {one.reason for one in self._troubles.values()}:
            log.warning("nats_refuses", reason=reason, waiting=waiting)
        since = int(self._clock.wall() * 1000) if known is None else known.since
        self._troubles[key] = _One(reason, since, waiting)

    def end(self, key: Hashable) -> None:
        if (ended := self._troubles.pop(key, None)) is not None:
            log.info("nats_takes_again", reason=ended.reason)

    @property
    def state(self) -> str:
        """For readiness: `ok`, or each reason once, since when, and the number of all that waits."""
        if not self._troubles:
            return "ok"
        reasons = "; ".join(dict.fromkeys(one.reason for one in self._troubles.values()))
        since = min(one.since for one in self._troubles.values())
        waiting = sum(one.waiting for one in self._troubles.values())
        return f"{reasons}; since {iso(since)}, {waiting} {self._waits} wait"
