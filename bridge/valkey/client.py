"""Connections to Valkey, with a password that is read again for each of them."""

from __future__ import annotations

from collections.abc import Callable

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from ports.errors import CeremonyError

# Returns the present password, empty for none. Raises CeremonyError when it cannot be read.
ReadPassword = Callable[[], str]


class _PasswordProvider(CredentialProvider):
    def __init__(self, read: ReadPassword) -> None:
        self._read = read

    def get_credentials(self) -> tuple[str] | tuple[()]:  # type: ignore[override]
        try:
            password = self._read()
        except CeremonyError:
            raise AuthenticationError("the password cannot be read") from None
        return (password,) if password else ()


def valkey_client(host: str, port: int, db: int, password: ReadPassword) -> redis.Redis:
    """Return a client that connects at its first call. It repeats nothing: the caller decides that."""
    return redis.Redis(
        host=host, port=port, db=db, credential_provider=_PasswordProvider(password), retry=Retry(NoBackoff(), 0)
    )
