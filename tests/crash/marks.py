"""The idempotency store in memory: the marks that Valkey keeps, with leases by the world's time."""

from __future__ import annotations

from dataclasses import dataclass, field

from ports.idempotency import HeldByAnother
from ports.outbound import Published
from tests.crash.world import Host, World

CALL_SECONDS = 0.02
LEASE_SECONDS = 8.0


@dataclass
class Marks:
    """The store, which outlives the processes."""

    world: World
    held: dict[str, tuple[Host, float]] = field(default_factory=dict)
    """Holder and end of the lease, by key."""
    completed: dict[str, Published] = field(default_factory=dict)

    def claim(self, key: str, owner: Host) -> Published | HeldByAnother | None:
        if key in self.completed:
            return self.completed[key]
        holder, until = self.held.get(key, (owner, 0.0))
        if holder is not owner and until > self.world.now:
            return HeldByAnother(until - self.world.now)
        self.held[key] = owner, self.world.now + LEASE_SECONDS
        return None

    def complete(self, key: str, published: Published) -> None:
        self.completed[key] = published


class MarksPort:
    """Fulfils `ports.idempotency.IdempotencyStore` in one process."""

    def __init__(self, marks: Marks, host: Host) -> None:
        self._marks = marks
        self._host = host

    async def claim(self, key: str) -> Published | HeldByAnother | None:
        return await self._host.call(CALL_SECONDS, lambda: self._marks.claim(key, self._host))

    async def complete(self, key: str, published: Published) -> None:
        await self._host.call(CALL_SECONDS, lambda: self._marks.complete(key, published))
