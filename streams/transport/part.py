"""One partition of one agent: reads it, hands over one batch at a time, and checkpoints rows, effects and position.

It knows neither Faust nor Kafka: a `Backend` is the log beneath it, `deliver` the agent above it, a `Clock` all its
waiting. The order of writes is the engine's whole guarantee (design.md §3): effects are sent as soon as a batch is
taken back; a checkpoint waits for exactly those effects and then writes rows and position in one transaction.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from steps.ports import Clock
from streams.transport.batch import AgentGone, HeldRecord, PartBatch
from streams.transport.contract import (
    AgentSpec,
    Backend,
    LogFailed,
    LogUnavailable,
    Out,
    PositionRow,
    Record,
    Recovered,
)
from streams.transport.dead_letters import DeadLetters, dead_letter, origin
from streams.transport.positions import checksum
from streams.transport.row_cache import RowCache
from streams.transport.row_store import MemoryStore, RowStore, Stores
from streams.transport.rows import Dirty, Rows, Table
from streams.transport.starting_point import fold_point, last_folded, resume_point
from tables.errors import FormatTooNew

logger = logging.getLogger(__name__)

Deliver = Callable[[PartBatch], Awaitable[None]]
"""Puts a batch into the stream of its agent."""

AGENT_FAILED = "agent_failed"
"""Code of a dead letter whose record made the agent raise when handed over alone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a part checkpoints beside its interval, and how many records may be held at once.

    Reading goes on during a checkpoint; at twice `commands` or `bytes` it waits for the log.
    """

    commands: int = 5_000
    bytes: int = 8 * 1024 * 1024
    held: int = 1_000
    handover_seconds: float = 2.0
    """How long a part that is given up waits for records its agent still holds."""


class _Snapshot(NamedTuple):
    """What one checkpoint writes; taken in one step, so that all of it is of one moment."""

    pending: list[asyncio.Future[Any]]
    dirty: Dirty
    commit: int
    last: Record | None


@dataclass(slots=True)
class Counters:
    """What a part has done since it was taken; metrics read it."""

    records: int = 0
    batches: int = 0
    checkpoints: int = 0
    rows_written: int = 0
    checkpoint_seconds: float = 0.0
    dead_letters: dict[str, int] = field(default_factory=dict)


class Part:
    """Fulfils `contract.PartitionView`. `take`, then `run`; `stop` makes `run` finish the batch in hand and return."""

    def __init__(
        self,
        spec: AgentSpec,
        number: int,
        *,
        partitions: int,
        backend: Backend,
        clock: Clock,
        deliver: Deliver,
        dead_letters: DeadLetters,
        interval: Callable[[], float],
        cache: RowCache,
        stores: Stores,
        limits: Limits | None = None,
    ) -> None:
        self.spec = spec
        self.number = number
        self.dead_letters = dead_letters
        self.end_at_take_over = 0
        self.counters = Counters()
        self._partitions = partitions
        self._backend = backend
        self._clock = clock
        self._deliver = deliver
        self._interval = interval
        self._limits = limits or Limits()
        self._cache = cache
        self._stores = stores
        self._rows = self._rows_of(MemoryStore({table.name: {} for table in spec.tables}))
        self._next = 0
        self._last: Record | None = None
        self._saved = -1
        self._pending: list[asyncio.Future[Any]] = []
        self._outbox: dict[tuple[str, int], list[Out]] = {}
        self._flush: asyncio.Handle | None = None
        self._held: dict[int, Record] = {}
        self._room = asyncio.Event()
        self._commands = 0
        self._bytes = 0
        self._due = asyncio.Event()
        self._lock = asyncio.Lock()
        self._failure: BaseException | None = None
        self._stopping = False
        self._closed = False
        self._idle = False
        self._reader: asyncio.Task[None] | None = None
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"<{self.spec.name}[{self.number}] at {self._next}>"

    # ---- what is seen from outside the agent

    @property
    def position(self) -> int:
        return self._next

    @property
    def stateful(self) -> bool:
        return bool(self._rows.tables)

    @property
    def table_names(self) -> frozenset[str]:
        return frozenset(self._rows.tables)

    @property
    def broken(self) -> bool:
        """A checkpoint failed: none may follow it."""
        return self._failure is not None

    def scan(
        self, table: str, decode: Callable[[bytes], Any] | None = None, keys: Iterable[bytes] | None = None
    ) -> Iterator[tuple[bytes, Any]]:
        return self._table(table).scan(decode, keys)

    def rows(self, table: str) -> Mapping[bytes, Any]:
        return self._table(table)

    def _table(self, table: str) -> Table:
        try:
            return self._rows.tables[table]
        except KeyError:
            raise KeyError(f"agent {self.spec.name} has no table {table!r}, only {sorted(self._rows.tables)}") from None

    async def folded(self, offset: int) -> None:
        """Return once the record at `offset` is folded. Raises LogUnavailable when the partition is given up before."""
        if self._stopping:
            raise LogUnavailable(f"partition_moving: {self.spec.name}[{self.number}] is being handed over")
        if offset >= self._next:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiters, (offset, id(waiter), waiter))
            await waiter

    # ---- taking the partition

    async def take(self) -> None:
        """Recover rows and position. Raises Unserved, LogFailed (another partition count), what the backend raises."""
        tables = [table.name for table in self.spec.tables]
        store = await self._stores.open(self.spec.name, self.number, tables) if tables else MemoryStore({})
        try:
            recovered = await self._backend.take(store)
            await store.loaded()
            self._next = self._saved = await self._begin(recovered)
        except BaseException:
            store.close()
            raise
        self._rows.close()
        self._rows = self._rows_of(store)
        self.end_at_take_over = recovered.end
        if self.spec.on_taken is not None:
            await self.spec.on_taken(self)

    def _rows_of(self, store: RowStore) -> Rows:
        return Rows(self.spec.tables, self.number, self._clock, self._cache, store)

    async def _begin(self, recovered: Recovered) -> int:
        row = recovered.position
        if not self.stateful:
            begin = resume_point(self.spec, self.number, recovered)
        else:
            begin = fold_point(self.spec, self.number, recovered, self._partitions)
            if row is not None and begin > recovered.start:
                where = f"{self.spec.topic}[{self.number}]"
                self._last = await last_folded(self._backend, row, where, self._clock)
                return begin
        self._backend.seek(begin)
        return begin

    # ---- running

    async def run(self) -> None:
        """Serve the partition until `stop`: returns after the last checkpoint. Raises Fenced, LogFailed, and others."""
        reader = self._reader = self._clock.spawn(self._read(), name=f"{self.spec.name}[{self.number}] reads")
        saver = self._clock.spawn(self._save(), name=f"{self.spec.name}[{self.number}] checkpoints")
        try:
            await asyncio.wait({reader, saver}, return_when=asyncio.FIRST_COMPLETED)
            if saver.done():
                saver.result()
            elif not reader.cancelled():
                reader.result()
            await self._settle()
            await self.checkpoint()
        finally:
            self._stopping = True
            reader.cancel()
            saver.cancel()
            await asyncio.wait({reader, saver})
            for task in (reader, saver):
                if not task.cancelled():
                    task.exception()

    def stop(self) -> None:
        """Ask for the end: the batch in hand is finished, nothing more is fetched."""
        self._stopping = True
        self._wake_waiters_for_good()
        if self._idle and self._reader is not None:
            self._reader.cancel()

    def abort(self) -> None:
        """Do not wait for the agent any longer: the batch in hand stays unfolded."""
        self.stop()
        if self._reader is not None:
            self._reader.cancel()

    async def close(self) -> None:
        """Let go of the log; `on_lost` hears of it."""
        self._stopping = self._closed = True
        self._wake_waiters_for_good()
        if self._flush is not None:
            self._flush.cancel()
        for ack in self._pending:  # nobody waits for these any more: a failure among them is no news
            ack.add_done_callback(_retrieve)
        await self._backend.close()
        self._rows.close()
        if self.spec.on_lost is not None:
            self.spec.on_lost(self.number)

    async def _read(self) -> None:
        fetch, batch = self._backend.fetch, self.spec.batch
        while not self._stopping:
            self._idle = True
            while len(self._held) >= self._limits.held:
                self._room.clear()
                await self._room.wait()
            records = await fetch(min(batch, self._limits.held - len(self._held)))
            self._idle = False
            await self._work(records)
            if self._commands >= self._limits.commands or self._bytes >= self._limits.bytes:
                self._due.set()
                if self._commands >= 2 * self._limits.commands or self._bytes >= 2 * self._limits.bytes:
                    await self.checkpoint()  # the log is slower than the agent: wait for it

    async def _work(self, records: Sequence[Record]) -> None:
        failure = await self._hand_over(records)
        if failure is None:
            return
        if len(records) == 1:
            self._bury(records[0], failure)
            return
        for record in records:  # one of them is poison: alone it shows itself, and the others are not lost
            if self._stopping:
                return
            failure = await self._hand_over([record])
            if failure is not None:
                self._bury(record, failure)

    async def _hand_over(self, records: Sequence[Record]) -> BaseException | None:
        """Give the agent a batch and wait until it asks for the next. Returns what it raised, if it did."""
        while True:
            batch = PartBatch(self, records)
            try:
                await self._deliver(batch)
                failure = await batch.finished
            except asyncio.CancelledError:
                batch.finished.cancel()
                self._forget(batch)
                raise
            if failure is None:
                self._accept(batch)
                return None
            self._forget(batch)
            if isinstance(failure, LogFailed):  # a row that cannot be read is no fault of the record's
                raise failure
            if isinstance(failure, MemoryError):
                raise LogFailed("out_of_memory: an agent ran out of memory; the worker ends") from failure
            if isinstance(failure, FormatTooNew):  # a newer release wrote it: a dead letter would lose what is sound
                raise LogFailed(str(failure)) from failure
            if not isinstance(failure, AgentGone):
                return failure
            if self._stopping:
                raise asyncio.CancelledError
            await self._clock.sleep(0.01)

    def _accept(self, batch: PartBatch) -> None:
        send, pending = self._backend.send, self._pending
        for (topic, partition), records in batch.outputs.items():
            pending.extend(send(topic, partition, records))
        for name, changed in batch.rows.items():
            self._bytes += self._rows.apply(name, changed)
        self._bytes += batch.bytes
        last = batch.last
        if self.stateful:  # a row grows by no more than what its commands bring
            for record in batch:
                if record.value is not None:
                    self._bytes += len(record.value)
        self._advance(last, len(batch))
        if self.spec.on_applied is not None:
            self.spec.on_applied(batch)

    def _advance(self, last: Record, count: int) -> None:
        self._next = last.offset + 1
        self._last = last
        self._commands += count
        self.counters.records += count
        self.counters.batches += 1
        while self._waiters and self._waiters[0][0] < self._next:
            waiter = heapq.heappop(self._waiters)[2]
            if not waiter.done():
                waiter.set_result(None)

    def _bury(self, record: Record, failure: BaseException) -> None:
        code = getattr(failure, "code", None)
        logger.error("%s: the agent raised %s; dead-lettered", origin(record), type(failure).__name__)
        message = "".join(traceback.format_exception(failure))
        letter = dead_letter(record, code if isinstance(code, str) else AGENT_FAILED, message)
        target = self.dead_letters.partition(record.partition)
        self._pending.extend(self._backend.send(self.dead_letters.topic, target, [letter]))
        self._bytes += len(letter.value)
        self.count_dead_letter(AGENT_FAILED)
        self._advance(record, 1)

    def count_dead_letter(self, code: str) -> None:
        counts = self.counters.dead_letters
        counts[code] = counts.get(code, 0) + 1

    # ---- records that are answered later

    def hold(self, record: Record) -> HeldRecord:
        if self.stateful:
            raise RuntimeError(f"agent {self.spec.name} has tables: it answers in its batch, it cannot hold a record")
        self._held[record.offset] = record
        return HeldRecord(self, record)

    def release(self, offset: int) -> None:
        self._held.pop(offset, None)
        self._room.set()

    def send_soon(self, topic: str, partition: int, record: Out) -> None:
        """Send with whatever else is sent in this turn of the loop, in one produce batch.

        After the partition was given up this does nothing: its next owner has the record done again.
        """
        if self._closed:
            return
        self._outbox.setdefault((topic, partition), []).append(record)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._flush_outbox)

    def _flush_outbox(self) -> None:
        self._flush = None
        outbox, self._outbox = self._outbox, {}
        for (topic, partition), records in outbox.items():
            self._bytes += sum(len(record.value) for record in records)
            self._pending.extend(self._backend.send(topic, partition, records))

    def _forget(self, batch: PartBatch) -> None:
        for offset in batch.held:
            self.release(offset)

    async def _settle(self) -> None:
        """Give the tasks behind held records a moment: what they finish now need not be done again elsewhere."""
        try:
            async with self._clock.timeout(self._limits.handover_seconds):
                while self._held and not self.broken:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            logger.info("%r: %d records still held are left to the next owner", self, len(self._held))

    # ---- checkpoints

    async def _save(self) -> None:
        while True:
            try:
                async with self._clock.timeout(self._interval()):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            await self.checkpoint()
            await self._rows.tidy()

    async def checkpoint(self) -> None:
        """Make durable what is folded so far.

        One that fails is never followed by another: rows and effects taken here would be missing below the position
        of the next; every later call raises the same failure. Raises Fenced, LogFailed, what the backend raises.
        """
        async with self._lock:
            if self._failure is not None:
                raise self._failure
            if not self._moved():
                return
            began, written = self._clock.monotonic(), self.counters.rows_written
            try:
                await self._save_snapshot(self._snapshot())
            except BaseException as failure:
                self._failure = failure
                raise
            self.counters.checkpoints += 1
            seconds = self._clock.monotonic() - began
            self.counters.checkpoint_seconds += seconds
            if self.spec.on_saved is not None:
                self.spec.on_saved(self.counters.rows_written - written, seconds)

    async def _save_snapshot(self, snapshot: _Snapshot) -> None:
        await self._acknowledged(snapshot.pending)
        if self.stateful:
            await self._write(snapshot)
        self._backend.commit(snapshot.commit)
        self._saved = snapshot.commit

    def _moved(self) -> bool:
        return bool(self._pending or self._outbox) or self._committable() != self._saved

    def _committable(self) -> int:
        return min(self._held) if self._held else self._next

    def _snapshot(self) -> _Snapshot:
        if self._outbox:
            self._flush_outbox()
        pending, self._pending = self._pending, []
        self._commands = self._bytes = 0
        return _Snapshot(pending, self._rows.take_dirty(), self._committable(), self._last)

    async def _acknowledged(self, pending: Sequence[asyncio.Future[Any]]) -> None:
        failure: Exception | None = None
        for ack in pending:
            if not ack.done():
                await asyncio.wait((ack,))  # others wait for it too: a checkpoint called off must not cancel it
            try:
                ack.result()
            except Exception as error:  # noqa: BLE001 - look at every one: none may stay unretrieved
                failure = failure or error
        if failure is not None and not isinstance(failure, LogFailed):
            raise LogFailed(
                f"send_refused: an effect of {self.spec.name}[{self.number}] was not acknowledged"
                f" ({type(failure).__name__})"
            ) from failure
        if failure is not None:
            raise failure

    async def _write(self, snapshot: _Snapshot) -> None:
        encoded = await self._rows.encode(snapshot.dirty)
        last = snapshot.last
        position = PositionRow(
            next=snapshot.commit,
            partitions=self._partitions,
            timestamp=0 if last is None else last.timestamp,
            checksum=0 if last is None else checksum(last),
        )
        await self._backend.checkpoint(encoded, position)
        await self._rows.saved(encoded, position)
        self.counters.rows_written += sum(map(len, encoded.values()))

    def _wake_waiters_for_good(self) -> None:
        waiters, self._waiters = self._waiters, []
        for _, _, waiter in waiters:
            if not waiter.done():
                moving = LogUnavailable(f"partition_moving: {self.spec.name}[{self.number}] is being handed over")
                waiter.set_exception(moving)


def _retrieve(ack: asyncio.Future[Any]) -> None:
    if not ack.cancelled():
        ack.exception()
