"""The ledger of failed writes in Valkey, as the planning service has it (specification 25.12)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from bridge.projection.dual_writes import PENDING, LedgerEntry
from bridge.valkey.client import ValkeyAddress, valkey_errors

ENTRY = "ceremony:dualwrite:"
PENDING_SET = "ceremony:dualwrite:pending"
# Completed entries are kept this long.
KEPT_SECONDS = 7 * 24 * 60 * 60

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LedgerEntry).decode


class ValkeyLedger:
    """Implements `Ledger`."""

    def __init__(self, address: ValkeyAddress) -> None:
        self._address = address
        self._client = address.client()

    async def pending(self, store: str) -> Collection[LedgerEntry]:
        with valkey_errors(self._address):
            found: Any = await self._client.smembers(PENDING_SET)
            keys = [ENTRY + key.decode() for key in found if key.endswith(f":{store}".encode())]
            values: Any = await self._client.mget(keys) if keys else []
        return [_decode(value) for value in values if value is not None]

    async def put(self, entries: Sequence[LedgerEntry]) -> None:
        with valkey_errors(self._address):
            async with self._client.pipeline(transaction=True) as pipe:
                for entry in entries:
                    key = f"{entry.operation_id}:{entry.store}"
                    if entry.status == PENDING:
                        pipe.set(ENTRY + key, _encode(entry))
                        pipe.sadd(PENDING_SET, key)
                    else:
                        pipe.set(ENTRY + key, _encode(entry), ex=KEPT_SECONDS)
                        pipe.srem(PENDING_SET, key)
                await pipe.execute()

    async def close(self) -> None:
        with valkey_errors(self._address):
            await self._client.aclose()
