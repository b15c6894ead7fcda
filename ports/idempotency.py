"""A store beside the log that remembers which messages of publish steps JetStream has acknowledged."""

from __future__ import annotations

from typing import Protocol

import msgspec

from ports.outbound import Published


class HeldByAnother(msgspec.Struct, frozen=True):
    """Another worker claimed the key and has not finished."""

    seconds: float
    """Rest of its lease; after it the key may be claimed."""


class IdempotencyStore(Protocol):
    """Claims and results by idempotency key. Both calls raise Unreachable, and each has a deadline of its own."""

    async def claim(self, key: str) -> Published | HeldByAnother | None:
        """Claim the key for a lease. Returns None to its holder, or the acknowledgement once the key is completed."""

    async def complete(self, key: str, published: Published) -> None:
        """Record the acknowledgement for as long as a request of the message can be read again."""
