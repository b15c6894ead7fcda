"""The driver of Neo4j, and its errors as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from neo4j import AsyncDriver, AsyncGraphDatabase, Auth, NotificationMinimumSeverity, basic_auth
from neo4j.auth_management import AsyncAuthManagers
from neo4j.exceptions import AuthError, ConfigurationError, DriverError, Neo4jError, ServiceUnavailable

from bridge.projection.store import StoreError

CONNECT_SECONDS = 3.0
NAME = "neo4j"


@dataclass(frozen=True, slots=True)
class Neo4jAddress:
    uri: str
    """`bolt://host:port` or `neo4j://host:port`; a scheme that ends in `+s` uses TLS."""
    user: str
    database: str | None
    """None: the user's default database."""
    password: Callable[[], str]
    """Asked at each connection, so that a password may change."""


def new_driver(address: Neo4jAddress) -> AsyncDriver:
    """Return a driver that connects at its first call. It repeats nothing by itself: its callers do, with the clock."""

    async def credentials() -> Auth:
        return basic_auth(address.user, address.password())

    return AsyncGraphDatabase.driver(
        address.uri,
        auth=AsyncAuthManagers.basic(credentials),
        connection_timeout=CONNECT_SECONDS,
        connection_acquisition_timeout=2 * CONNECT_SECONDS,
        max_transaction_retry_time=0,
        notifications_min_severity=NotificationMinimumSeverity.OFF,
        user_agent="ceremony-engine",
    )


@contextlib.contextmanager
def neo4j_errors(address: Neo4jAddress) -> Iterator[None]:
    """Turn the errors of the driver into StoreError."""
    try:
        yield
    except AuthError:
        raise StoreError(NAME, "user or password is refused") from None
    except Neo4jError as error:
        raise StoreError(NAME, f"the server refuses: {error.code}") from None
    except ServiceUnavailable:
        raise StoreError(NAME, f"no connection to {address.uri}") from None
    except (DriverError, ConfigurationError, OSError) as error:
        raise StoreError(NAME, f"the call failed ({type(error).__name__})") from None
