"""Retention: 30 days after its end a ceremony becomes a stub, a year later its row goes."""

from __future__ import annotations

from tables.fold.context import Decision, FoldContext
from tables.instance import Instance, Timer
from tables.timers import DAY_MS, EXPIRE

UNTIL_STUB_MS = 30 * DAY_MS
UNTIL_TOMBSTONE_MS = 365 * DAY_MS


def expire(fold: FoldContext, row: Instance) -> None:
    """Fold the timer `expire`, on an ended row or a stub. It needs no definition."""
    fold.decided = Decision(None if row.expired else stub_of(row, fold.origin.timestamp, UNTIL_TOMBSTONE_MS), ())


def stub_of(row: Instance, now: int, expire_in: int) -> Instance:
    """Return the stub of a finished row: identity, final status, version and the digest of its start."""
    return Instance(
        instance_id=row.instance_id,
        ceremony_id=row.ceremony_id,
        story_id=row.story_id,
        definition_name=row.definition_name,
        definition_hash=row.definition_hash,
        correlation_id=row.correlation_id,
        requested_by="",
        start_digest=row.start_digest,
        state=row.state,
        status=row.status,
        created_at=row.created_at,
        updated_at=max(now, row.updated_at),
        version=row.version + 1,
        ended_at=row.ended_at,
        timers={EXPIRE: Timer(now + expire_in)},
        expired=True,
    )
