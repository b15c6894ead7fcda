"""Connections to a real Valkey: the password is read for each of them."""

from __future__ import annotations

import pytest
from redis.exceptions import AuthenticationError

from bridge.valkey.client import valkey_client
from ceremony.errors import SettingsInvalid
from tests.conftest import ValkeyAddress
from tests.services import ValkeyServer


async def test_a_password_that_changes_is_read_again(valkey: ValkeyServer | ValkeyAddress) -> None:
    passwords = ["wrong", valkey.password]
    async with valkey_client(valkey.host, valkey.port, 0, lambda: passwords.pop(0)) as client:
        with pytest.raises(AuthenticationError):
            await client.ping()
        assert await client.ping()


async def test_a_password_that_cannot_be_read_says_so_without_its_file(valkey: ValkeyServer | ValkeyAddress) -> None:
    def unreadable() -> str:
        raise SettingsInvalid(["VALKEY_PASSWORD_FILE: cannot be read (No such file or directory)"])

    async with valkey_client(valkey.host, valkey.port, 0, unreadable) as client:
        with pytest.raises(AuthenticationError, match="the password cannot be read"):
            await client.ping()
