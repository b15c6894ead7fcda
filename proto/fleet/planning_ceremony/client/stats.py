"""Counts of the starts that a client was given to send by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StartStats:
    """The starts of one client so far; those of an outbox that an earlier process left count as accepted.

    `accepted` = `sent` + `pending` + the refusals of the engine + what was dropped after it was accepted.
    """

    accepted: int = 0
    sent: int = 0
    """Taken by the engine."""
    pending: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    """By code: refused by the engine, or not to be sent at all (`arguments_invalid`, `inputs_invalid`,
    `client_failed`)."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By reason: `full`, `deadline`, `closed`, `forked`, `outbox` (not written), `unreadable` (in the outbox)."""
