"""The read model in Valkey: a JSON document for each instance, and sets of their ids (specification 25.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

import msgspec

from bridge.projection.store import StoredRow, Write
from bridge.valkey.client import NAME, ValkeyAddress, valkey_errors
from bridge.valkey.places import ValkeyPlaces
from tables.read_model import valkey_json

INSTANCE = "ceremony:instance:"
DEFINITION = "ceremony:definition:"
ALL_INSTANCES = "ceremony:instances:all"
PAGE = 1000


class _VersionOnly(msgspec.Struct):
    version: int


_version_of = msgspec.json.Decoder(_VersionOnly).decode


class ValkeyStore(ValkeyPlaces):
    """Implements `Store`: each write is one call of a script."""

    name = NAME

    def __init__(self, address: ValkeyAddress, *, topic: str) -> None:
        """`topic`: the changelog, whose places stand under its name."""
        super().__init__(address, topic, "write.lua")

    async def write(self, write: Write) -> str:
        return await self._written(_arguments(write))

    async def instance_ids(self) -> AsyncIterator[Sequence[str]]:
        cursor = 0
        page: Any
        while True:
            with valkey_errors(self._address):
                cursor, page = await self._client.sscan(ALL_INSTANCES, cursor, count=PAGE)
            if page:
                yield [instance_id.decode() for instance_id in page]
            if not cursor:
                return

    async def rows(self, instance_ids: Collection[str]) -> Sequence[StoredRow]:
        ids = list(instance_ids)
        if not ids:
            return []
        with valkey_errors(self._address):
            values: Any = await self._client.mget([INSTANCE + instance_id for instance_id in ids])
        return [_stored(i, value) for i, value in zip(ids, values, strict=True) if value is not None]

    async def definitions(self, hashes: Collection[str]) -> Mapping[str, str]:
        wanted = list(hashes)
        if not wanted:
            return {}
        with valkey_errors(self._address):
            texts: Any = await self._client.mget([DEFINITION + digest for digest in wanted])
        pairs = zip(wanted, texts, strict=True)
        return {digest: text.decode(errors="replace") for digest, text in pairs if text is not None}


def _arguments(write: Write) -> list[Any]:
    """Return the arguments of the script, in the order that its head gives."""
    arguments: list[Any] = [write.partition, write.expected, write.place, len(write.documents)]
    for document in write.documents:
        arguments += (
            document.instance_id,
            document.version,
            document.created_at,
            document.correlation_id,
            valkey_json(document),
        )
    arguments.append(len(write.gone))
    for gone in write.gone:
        arguments += (gone.instance_id, gone.version, gone.created_at)
    for digest, (_, text) in (write.definitions or {}).items():
        arguments += (digest, text)
    return arguments


def _stored(instance_id: str, value: bytes) -> StoredRow:
    try:
        return StoredRow(instance_id, _version_of(value).version, value)
    except msgspec.DecodeError:
        return StoredRow(instance_id, 0, value)
