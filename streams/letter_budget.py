"""Bounds the dead letters that one worker writes in an hour, in number and in bytes; the rest is counted.

A flood of records that nobody can process would else fill the log's disk with their copies. The originals stay where
they are, for as long as their topic or stream keeps them.
"""

from __future__ import annotations

import enum

import structlog
from prometheus_client import Counter

from ports.clock import Clock

HOUR_SECONDS = 3600.0
# Dead letters of one worker in an hour, and the bytes of the values in them.
LETTERS_PER_HOUR = 10_000
BYTES_PER_HOUR = 64 * 1024 * 1024
NOT_KEPT = Counter("ceremony_dead_letters_not_kept", "Records set aside without a dead letter", ["code"])

log = structlog.get_logger(__name__)


class Room(enum.Enum):
    """The room that is left for one more dead letter."""

    WHOLE = "whole"
    REFERENCE = "reference"
    """Without its value, which stays at the origin."""
    NONE = "none"
    """It is only counted."""


class LetterBudget:
    """The dead letters of this worker in the present hour, which begins with the first of them."""

    def __init__(self, clock: Clock, most: int = LETTERS_PER_HOUR, most_bytes: int = BYTES_PER_HOUR) -> None:
        self._clock = clock
        self._most = most
        self._most_bytes = most_bytes
        self._until = clock.monotonic()
        self._letters = self._bytes = 0
        self.not_kept = 0
        """Letters of the present hour that were only counted."""

    def take(self, code: str, size: int) -> Room:
        """Take the room for a dead letter with a value of so many bytes."""
        self._begin_hour()
        if self._letters >= self._most:
            self._count(code)
            return Room.NONE
        self._letters += 1
        if self._bytes + size > self._most_bytes:
            return Room.REFERENCE
        self._bytes += size
        return Room.WHOLE

    @property
    def shortage(self) -> str:
        """For the diagnosis: the letters of the present hour that were not written; empty where all were."""
        self._begin_hour()
        if not self.not_kept:
            return ""
        return f"{self.not_kept} dead letters of this hour were not written, being more than {self._most}"

    def _begin_hour(self) -> None:
        now = self._clock.monotonic()
        if now < self._until:
            return
        if self.not_kept:
            log.error("dead_letters_not_kept", count=self.not_kept, reason=f"more than {self._most} in an hour")
        self._until = now + HOUR_SECONDS
        self._letters = self._bytes = self.not_kept = 0

    def _count(self, code: str) -> None:
        NOT_KEPT.labels(code[:100]).inc()
        self.not_kept += 1
        if self.not_kept == 1:
            log.error(
                "dead_letters_not_kept",
                count=1,
                reason=f"more than {self._most} in an hour; the rest is counted",
                todo="find the sender of these unprocessable records",
            )
