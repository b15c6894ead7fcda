"""The places of one followed topic in Valkey, which every store there has."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from bridge.valkey.client import ValkeyAddress, valkey_errors

PLACES = "ceremony:projector:"


class ValkeyPlaces:
    """Base of the stores in Valkey, which implements `PlacedStore` but for the name."""

    def __init__(self, address: ValkeyAddress, topic: str, script: str) -> None:
        """`topic`: the followed one, whose places stand under its name; `script`: the file that makes the writes."""
        self._address = address
        self._client = address.client()
        self._places = PLACES + topic
        self._script = self._client.register_script(files("bridge.valkey").joinpath(script).read_bytes())

    async def open(self) -> None:
        """Nothing is needed: the script is loaded where it is missing."""

    async def places(self) -> Mapping[int, str]:
        with valkey_errors(self._address):
            found: Any = await self._client.hgetall(self._places)
        return {int(partition): text.decode() for partition, text in found.items()}

    async def set_places(self, places: Mapping[int, str]) -> None:
        with valkey_errors(self._address):
            await self._client.hset(self._places, mapping={str(number): text for number, text in places.items()})

    async def _written(self, arguments: list[Any]) -> str:
        """Run the script, which Valkey does whole or not at all; return the text of the place."""
        with valkey_errors(self._address):
            found: bytes = await self._script(keys=[self._places], args=arguments)
        return found.decode()

    async def close(self) -> None:
        with valkey_errors(self._address):
            await self._client.aclose()
