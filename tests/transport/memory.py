"""A log in memory that implements `Backend`, with real offsets, transactions and fencing.

`MemoryLog` is the broker and outlives its `MemoryBackend`s, one for each take-over of a partition. Acknowledgements
come at once or, with `hold_acks`, when the test releases them; a failure can be set for each kind of write.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ports.log import AgentSpec, Fenced, Record
from streams.transport.partition.backend import Backend, NewRecord, PositionRow, Recovered, RowLoader
from streams.transport.partition.row_store import MemoryStore


async def read_back(backend: Backend, *tables: str) -> tuple[dict[str, dict[bytes, bytes]], Recovered]:
    """Take a partition; return its rows by table, and its positions."""
    store = MemoryStore({table: {} for table in tables})
    recovered = await backend.take(store)
    return {table: dict(store.items(table)) for table in tables}, recovered


@dataclass
class MemoryLog:
    """All topics, changelogs, positions and group offsets."""

    now: int = 1_000
    """Append time of the next record in milliseconds, incremented with each record."""
    records: dict[tuple[str, int], list[Record]] = field(default_factory=lambda: defaultdict(list))
    starts: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    rows: dict[tuple[str, int], dict[bytes, bytes]] = field(default_factory=lambda: defaultdict(dict))
    positions: dict[tuple[str, int], PositionRow] = field(default_factory=dict)
    committed: dict[tuple[str, int], int] = field(default_factory=dict)
    epochs: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    transactions: list[tuple[Mapping[str, Mapping[bytes, bytes | None]], PositionRow]] = field(default_factory=list)
    hold_acks: bool = False
    waiting_acks: list[asyncio.Future[None]] = field(default_factory=list)
    fail_send: Exception | None = None
    fail_checkpoint: Exception | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Any] = ()
    ) -> Record:
        log = self.records[topic, partition]
        offset = self.end(topic, partition)
        record = Record(topic, partition, offset, self.now, key, value, list(headers))
        self.now += 1
        log.append(record)
        self.arrived.set()
        self.arrived = asyncio.Event()
        return record

    def end(self, topic: str, partition: int) -> int:
        return self.starts[topic, partition] + len(self.records[topic, partition])

    def trim(self, topic: str, partition: int, start: int) -> None:
        """Retention: delete the records below `start`."""
        log = self.records[topic, partition]
        del log[: start - self.starts[topic, partition]]
        self.starts[topic, partition] = start

    def values(self, topic: str, partition: int = 0) -> list[bytes]:
        return [record.value or b"" for record in self.records[topic, partition]]

    def acknowledge(self) -> None:
        """Acknowledge every write so far."""
        waiting, self.waiting_acks = self.waiting_acks, []
        for ack in waiting:
            if not ack.done():
                ack.set_result(None)

    def backend(self, spec: AgentSpec, partition: int) -> MemoryBackend:
        return MemoryBackend(self, spec, partition)


class MemoryBackend:
    """Implements `Backend` on a MemoryLog."""

    def __init__(self, log: MemoryLog, spec: AgentSpec, partition: int) -> None:
        self.log = log
        self.spec = spec
        self.partition = partition
        self.next = 0
        self.closed = False
        self._epoch = 0
        self._committed: int | None = None

    @property
    def _tp(self) -> tuple[str, int]:
        return self.spec.topic, self.partition

    async def take(self, rows: RowLoader) -> Recovered:
        await asyncio.sleep(0)
        self.log.epochs[self._tp] += 1
        self._epoch = self.log.epochs[self._tp]
        await asyncio.sleep(0)
        for table in self.spec.tables:
            await rows.load(table.name, dict(self.log.rows[table.name, self.partition]))
        return Recovered(
            position=self.log.positions.get(self._tp),
            start=self.log.starts[self._tp],
            end=self.log.end(*self._tp),
            committed=self.log.committed.get(self._tp),
        )

    def seek(self, offset: int) -> None:
        self.next = offset

    async def fetch(self, limit: int) -> Sequence[Record]:
        while self.next >= self.log.end(*self._tp):
            await self.log.arrived.wait()
        first = self.next - self.log.starts[self._tp]
        records = self.log.records[self._tp][first : first + limit]
        self.next = records[-1].offset + 1
        await asyncio.sleep(0)
        return records

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> Sequence[asyncio.Future[Any]]:
        ack: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.log.fail_send is not None:
            ack.set_exception(self.log.fail_send)
            return [ack]
        for record in records:
            self.log.append(topic, partition, record.key, record.value, record.headers)
        if self.log.hold_acks:
            self.log.waiting_acks.append(ack)
        else:
            ack.set_result(None)
        return [ack]

    async def checkpoint(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        await asyncio.sleep(0)
        if self._epoch != self.log.epochs[self._tp]:
            raise Fenced("fenced", f"{self._tp} has another owner")
        if self.log.fail_checkpoint is not None:
            raise self.log.fail_checkpoint
        self.write(rows, position)

    def write(self, rows: Mapping[str, Mapping[bytes, bytes | None]], position: PositionRow) -> None:
        """Commit the transaction in one step."""
        for table, changed in rows.items():
            stored = self.log.rows[table, self.partition]
            for key, row in changed.items():
                if row is None:
                    stored.pop(key, None)
                else:
                    stored[key] = row
        self.log.positions[self._tp] = position
        self.log.transactions.append((rows, position))

    async def durable(self, offset: int) -> None:
        """Return at once: every appended record is durable."""

    def commit(self, offset: int) -> None:
        self._committed = offset

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True
        if self._committed is not None and self._epoch == self.log.epochs[self._tp]:
            self.log.committed[self._tp] = self._committed
