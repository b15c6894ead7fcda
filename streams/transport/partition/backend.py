"""The log beneath one partition of an agent, as its `Part` sees it; every driver implements it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ports.log import Header, Record

# Key of the position row in the changelog of an agent's first table.
POSITION_KEY = b"\0position"


class PositionRow(NamedTuple):
    """The position row: where a recovered owner begins, and what tells it that the log is still the same."""

    next: int
    partitions: int
    timestamp: int
    """Append time in milliseconds of the last record folded."""
    checksum: int
    """CRC-32 of key and value of the last record folded."""


class NewRecord(NamedTuple):
    """One record to be written; the partition is that of the list it stands in."""

    key: bytes | None
    value: bytes
    headers: Sequence[Header] = ()


class RowLoader(Protocol):
    """Where a backend puts the rows that it reads back."""

    async def load(self, table: str, rows: Mapping[bytes, bytes | None]) -> None:
        """Some encoded rows of a table, in the order of its changelog: a later one replaces an earlier one.

        None is a tombstone. What is awaited is memory: who reads faster than rows are stored waits here.
        """


class Recovered(NamedTuple):
    """What a backend knew of a partition when it was taken."""

    position: PositionRow | None
    start: int
    """Log start of the agent's topic."""
    end: int
    """Log end of the agent's topic."""
    committed: int | None
    """Committed offset of the group; what a stateless agent resumes at."""


class Backend(Protocol):
    """What one `Part` (a partition of an agent) needs of the log beneath it; `Part` itself knows no Faust and no Kafka.

    One object per partition of an agent. Failures that are final (fenced, a refused produce) are raised as LogFailed.
    """

    async def take(self, rows: RowLoader) -> Recovered:
        """Fence the former owner, then read back the rows, into `rows`, the position and the log's ends."""

    def seek(self, offset: int) -> None:
        """The next `fetch` begins at this offset."""

    async def fetch(self, limit: int) -> Sequence[Record]:
        """Wait for at least one record after the last fetched one; at most `limit`. Cancelling it loses nothing."""

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> Sequence[asyncio.Future[Any]]:
        """Write without waiting; one future per produce batch, done when acknowledged by all in-sync replicas.

        A batch may hold what others send too, so its future must not be cancelled.
        """

    async def checkpoint(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        """Write exactly these rows and the position row in one transaction. Raises Fenced, LogFailed."""

    def commit(self, offset: int) -> None:
        """Everything below `offset` is dealt with; written to the group soon, and before `close` returns."""

    async def close(self) -> None: ...
