"""Connections to Valkey, with a password that is read again for each of them, and its errors as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as TooSlow

from bridge.projection.store import StoreError
from ports.errors import CeremonyError

# Returns the present password, empty for none. Raises CeremonyError when it cannot be read.
ReadPassword = Callable[[], str]
CONNECT_SECONDS = 3.0
# Deadline of an answer; callers set shorter ones where they need them.
ANSWER_SECONDS = 10.0
NAME = "valkey"


class _PasswordProvider(CredentialProvider):
    def __init__(self, read: ReadPassword) -> None:
        self._read = read

    def get_credentials(self) -> tuple[str] | tuple[()]:  # type: ignore[override]
        try:
            password = self._read()
        except CeremonyError:
            raise AuthenticationError("the password cannot be read") from None
        return (password,) if password else ()

    async def get_credentials_async(self) -> tuple[str] | tuple[()]:  # type: ignore[override]
        return self.get_credentials()


def valkey_client(host: str, port: int, db: int, password: ReadPassword) -> redis.Redis:
    """Return a client that connects at its first call. It repeats nothing: the caller decides that."""
    return redis.Redis(
        host=host,
        port=port,
        db=db,
        credential_provider=_PasswordProvider(password),
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


@dataclass(frozen=True, slots=True)
class ValkeyAddress:
    host: str
    port: int
    db: int
    password: ReadPassword

    def client(self) -> redis.Redis:
        return valkey_client(self.host, self.port, self.db, self.password)


@contextlib.contextmanager
def valkey_errors(address: ValkeyAddress) -> Iterator[None]:
    """Turn the errors of the client into StoreError."""
    try:
        yield
    except AuthenticationError:
        raise StoreError(NAME, "the password is refused, or cannot be read") from None
    except TooSlow:
        raise StoreError(NAME, f"no answer from {address.host}:{address.port}") from None
    except NotConnected:
        raise StoreError(NAME, f"no connection to {address.host}:{address.port}") from None
    except ResponseError as error:
        raise StoreError(NAME, f"the server refuses: {_code(error)}") from None
    except (RedisError, OSError) as error:
        raise StoreError(NAME, f"the call failed ({type(error).__name__})") from None


def _code(error: ResponseError) -> str:
    """Return the code of a refusal, its first word: `OOM`, `READONLY`, `NOPERM`; the rest may quote data."""
    text = str(error).partition(" ")[0]
    return text if text.isupper() and text.isascii() else "ERR"
