"""The idempotency store of publish steps in Valkey: one key per message, claimed and completed atomically."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from ports.clock import Clock
from ports.errors import Unreachable
from ports.idempotency import HeldByAnother
from ports.outbound import Published
from streams.outages import NeighbourOutage

NEIGHBOUR = "valkey"
PREFIX = "idempotency:"
# Above the deadline of a publish, so that a holder that lives keeps its claim.
LEASE_SECONDS = 8.0
# As long as a step request can be read again (retention of the topics of step requests).
COMPLETED_KEPT_SECONDS = 7 * 24 * 60 * 60
CALL_TIMEOUT_SECONDS = 0.1

# Returns the completed mark, or the milliseconds left of another owner's lease, or nothing: then the caller holds the
# key. The lease is the key's own time to live, so only Valkey's clock counts. A value that is no mark is replaced.
_CLAIM = """
local found = redis.call('GET', KEYS[1])
if found then
    local read, mark = pcall(cjson.decode, found)
    if read and type(mark) == 'table' then
        if mark.state == 'COMPLETED' then return found end
        local left = redis.call('PTTL', KEYS[1])
        if mark.state == 'IN_PROGRESS' and mark.owner ~= ARGV[1] and left > 0 then return left end
    end
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false
"""


class PublicationMark(msgspec.Struct, omit_defaults=True):
    """The value of `idempotency:<key>`."""

    state: Literal["IN_PROGRESS", "COMPLETED"]
    timestamp: str
    """ISO 8601, UTC, of the last change, by the worker's clock."""
    owner: str = ""
    """The worker that publishes, while IN_PROGRESS."""
    stream: str = ""
    """Place of the message, once COMPLETED."""
    sequence: int = 0


_decoder = msgspec.json.Decoder(PublicationMark)


class ValkeyIdempotency:
    """Implements `ports.idempotency.IdempotencyStore`. A worker that restarts under its `owner` keeps its claims."""

    def __init__(self, client: redis.Redis, clock: Clock, owner: str, outage: NeighbourOutage | None = None) -> None:
        """`outage`: that of Valkey, which somebody else ticks."""
        self._client = client
        self._clock = clock
        self._owner = owner
        self._claim = client.register_script(_CLAIM)
        self._outage = outage

    async def claim(self, key: str) -> Published | HeldByAnother | None:
        mark = self._mark("IN_PROGRESS", owner=self._owner)
        arguments: list[bytes | str | int] = [self._owner, mark, int(LEASE_SECONDS * 1000)]
        found = await self._call(self._claim(keys=[PREFIX + key], args=arguments))
        if isinstance(found, int):
            return HeldByAnother(found / 1000)
        return None if found is None else _published(found)

    async def complete(self, key: str, published: Published) -> None:
        mark = self._mark("COMPLETED", stream=published.stream, sequence=published.sequence)
        await self._call(self._client.set(PREFIX + key, mark, ex=COMPLETED_KEPT_SECONDS))

    async def probe(self) -> None:
        """Check that Valkey answers. Raises Unreachable."""
        await self._call(self._client.ping())

    async def close(self) -> None:
        await self._client.aclose()

    def _mark(self, state: Literal["IN_PROGRESS", "COMPLETED"], **fields: Any) -> bytes:
        at = datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="milliseconds")
        return msgspec.json.encode(PublicationMark(state, at, **fields))

    async def _call(self, call: Awaitable[Any]) -> Any:
        try:
            async with self._clock.timeout(CALL_TIMEOUT_SECONDS):
                answer = await call
        except TimeoutError:
            raise self._unreachable(f"no answer within {CALL_TIMEOUT_SECONDS:g} s") from None
        except (RedisError, OSError):
            raise self._unreachable("the call failed") from None
        if self._outage is not None:
            self._outage.answered()
        return answer

    def _unreachable(self, reason: str) -> Unreachable:
        if self._outage is not None:
            self._outage.failed("valkey_unreachable", reason)
        return Unreachable(NEIGHBOUR, reason)


def _published(found: bytes | str) -> Published | None:
    """Return the place of a completed message; a mark without one, of the fleet's older engine, names none."""
    try:
        mark = _decoder.decode(found)
    except msgspec.DecodeError:
        return Published("", 0, duplicate=True)
    return Published(mark.stream, mark.sequence, duplicate=True)
