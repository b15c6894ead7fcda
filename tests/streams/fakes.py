"""Helpers for the tests of streams/: a clock that the test moves, a batch and a view in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ports.log import Header, Held, Record
from streams.topics import CEREMONIES, DEFINITIONS
from tables.commands import AnyCommand, encode_command
from tables.instance import Instance


class HandClock:
    """Time stands still until `advance`; tasks are real ones."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.seconds + seconds, future))
        await future

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        return asyncio.create_task(coroutine, name=name)

    @contextlib.asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as inner:
            loop = asyncio.get_running_loop()
            alarm = loop.create_future()
            alarm.add_done_callback(lambda _: None if alarm.cancelled() else inner.reschedule(loop.time()))
            self._sleepers.append((self.seconds + seconds, alarm))
            try:
                yield
            finally:
                alarm.cancel()

    async def advance(self, seconds: float) -> None:
        """Let time pass, wake sleepers whose time has come, and run all tasks that can run."""
        await settle()
        self.seconds += seconds
        due = [future for at, future in self._sleepers if at <= self.seconds]
        self._sleepers = [(at, future) for at, future in self._sleepers if at > self.seconds]
        for future in due:
            if not future.done():
                future.set_result(None)
        await settle()


async def settle() -> None:
    """Run all tasks that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


class MemoryView:
    """Implements `PartitionView` over rows in memory."""

    def __init__(self, number: int = 0, *, position: int = 0, end: int = 0) -> None:
        self.number = number
        self.position = position
        self.end_at_take_over = end
        self.durable: int | None = None
        """Offset below which everything is committed; None: everything is."""
        self.tables: dict[str, dict[bytes, Any]] = {CEREMONIES: {}, DEFINITIONS: {}}

    def rows(self, table: str) -> Mapping[bytes, Any]:
        return self.tables[table]

    def scan(self, table: str, decode: Any = None, keys: Iterable[bytes] | None = None) -> Iterator[tuple[bytes, Any]]:
        rows = self.tables[table]
        return ((key, rows[key]) for key in list(rows if keys is None else keys) if key in rows)

    async def folded(self, offset: int) -> None:
        """Wait until a test has moved the position; nobody folds here."""
        while offset >= self.position:
            await asyncio.sleep(0.001)

    async def committed(self, offset: int) -> None:
        """Return once the test has committed everything below `offset`."""
        while self.durable is not None and self.durable < offset:
            await asyncio.sleep(0.001)

    async def sent(self) -> None:
        """Return at once, as no effect is unacknowledged."""

    def put(self, row: Instance) -> None:
        self.tables[CEREMONIES][row.instance_id.encode()] = row


class Sent(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    headers: Sequence[Header]


class MemoryBatch:
    """Implements `Batch` over a view's rows; changes are visible at once."""

    def __init__(self, view: MemoryView, records: Sequence[Record]) -> None:
        self._view = view
        self._records = records
        self.partition = view.number
        self.note: Any = None
        self.sent: list[Sent] = []
        self.dead: list[tuple[Record, str, str]] = []
        self.puts: list[tuple[str, bytes]] = []

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def get(self, table: str, key: bytes) -> Any | None:
        return self._view.tables[table].get(key)

    def put(self, table: str, key: bytes, row: Any | None) -> None:
        self.puts.append((table, key))
        if row is None:
            self._view.tables[table].pop(key, None)
        else:
            self._view.tables[table][key] = row

    def rows_changed(self, table: str) -> Mapping[bytes, Any | None]:
        return {key: self.get(table, key) for name, key in self.puts if name == table}

    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        self.sent.append(Sent(topic, key, value, headers))

    def hold(self, record: Record) -> Held:
        raise AssertionError("the ceremony agent holds nothing")

    def dead_letter(self, record: Record, code: str, message: str) -> None:
        self.dead.append((record, code, message))


def record(offset: int, key: bytes | None, value: bytes | None, timestamp: int = 1_000) -> Record:
    return Record("t.commands", 0, offset, timestamp + offset, key, value)


def command_record(offset: int, command: AnyCommand, timestamp: int = 1_700_000_000_000) -> Record:
    """The record of a command under its own key."""
    return record(offset, command.instance_id.encode(), encode_command(command), timestamp)
