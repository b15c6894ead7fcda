"""The address of Valkey, for each part that connects to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ceremony.store_settings import StoreSettings

if TYPE_CHECKING:
    from bridge.valkey.client import ValkeyAddress


def valkey_address(settings: StoreSettings) -> ValkeyAddress | None:
    """Return the address; None where Valkey is off. Its client is loaded only where it is used."""
    if settings.valkey_host is None:
        return None
    from bridge.valkey.client import ValkeyAddress  # noqa: PLC0415

    return ValkeyAddress(settings.valkey_host, settings.valkey_port, settings.valkey_db, settings.valkey_secret.read)
