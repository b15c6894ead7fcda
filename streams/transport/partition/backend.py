"""The interface between the `Part` of one partition and the log; every driver implements it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ports.log import Header, Record

# Key of the position row in the changelog of an agent's first table.
POSITION_KEY = b"\0position"


class PositionRow(NamedTuple):
    """The position row: the offset at which a new owner begins, and a checksum to recognise the log."""

    next: int
    partitions: int
    timestamp: int
    """Append time in milliseconds of the last record folded."""
    checksum: int
    """CRC-32 of key and value of the last record folded."""
    fold: int = 0
    """Fold number of the release that owned the partition; 0 in rows of release 0.1.0."""


class NewRecord(NamedTuple):
    """One record to write, to the partition of its list."""

    key: bytes | None
    value: bytes
    headers: Sequence[Header] = ()


class RowLoader(Protocol):
    """Takes the rows that a backend reads back."""

    async def load(self, table: str, rows: Mapping[bytes, bytes | None]) -> None:
        """Take some encoded rows of a table in the order of its changelog; a later row replaces an earlier one.

        None is a tombstone. A caller that reads faster than rows are stored waits here, so memory stays bounded.
        """


class Recovered(NamedTuple):
    """Positions of a partition at its take-over."""

    position: PositionRow | None
    start: int
    """Log start of the agent's topic."""
    end: int
    """Log end of the agent's topic."""
    committed: int | None
    """Committed offset of the group, at which a stateless agent resumes."""


class Backend(Protocol):
    """The log of one partition of an agent, one object each. `Part` itself knows neither Faust nor Kafka.

    Final failures (fenced, a refused write) are raised as LogFailed.
    """

    async def take(self, rows: RowLoader) -> Recovered:
        """Fence the former owner; then read the rows back into `rows`, and the position and the log's ends."""

    def seek(self, offset: int) -> None:
        """Let the next `fetch` begin at this offset."""

    async def fetch(self, limit: int) -> Sequence[Record]:
        """Return the next records, at least one and at most `limit`. Cancelling it loses nothing."""

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> Sequence[asyncio.Future[Any]]:
        """Write without waiting; return a future per produce batch, done when all in-sync replicas acknowledged it.

        A batch may contain records of other callers, so its future must not be cancelled.
        """

    async def checkpoint(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        """Write exactly these rows and the position row in one transaction. Raises Fenced, LogFailed."""

    async def durable(self, offset: int) -> None:
        """Return once every record of the agent's topic below `offset` is durable. Raises LogFailed.

        It may be behind the records that `fetch` has returned where a log lets its readers run ahead of its commits.
        """

    def commit(self, offset: int) -> None:
        """Commit `offset` to the group soon, at the latest before `close` returns: all below it is processed."""

    async def close(self) -> None: ...
