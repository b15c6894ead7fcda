"""Which events of a partition were published lately, by their ids: a copy further on in the log is not sent again.

After a crash, and by a worker that was stopped and woke up, effects are written a second time, with a new append time.
Where the first copy was published longer ago than JetStream's duplicate window, only its id tells.
"""

from __future__ import annotations

from collections.abc import Iterable

from streams import topics
from streams.transport.contract import Log, Record

KEPT = 20_000
"""Events of a partition remembered at least: more than an owner folds between two checkpoints."""


class Recent:
    """The newest ids, bounded: the older half is forgotten at once."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._new: set[str] = set()
        self._old: set[str] = set()

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._new or message_id in self._old

    def add(self, message_ids: Iterable[str]) -> None:
        self._new.update(message_ids)
        if len(self._new) >= self._kept:
            self._old, self._new = self._new, set()


async def published_before(log: Log, topic: str, partition: int, offset: int, kept: int = KEPT) -> Recent:
    """What stands before `offset`, the first that was not committed as published. Raises LogUnavailable."""
    recent = Recent(kept)
    start = (await log.ends(topic))[partition][0]
    if start < offset:
        async for records in log.read(topic, partition, max(start, offset - kept), offset):
            recent.add(map(_id, records))
    return recent


def _id(record: Record) -> str:
    return dict(record.headers).get(topics.EFFECT_ID, b"").decode(errors="replace")
