"""One partition of one agent: reads it, delivers one batch at a time to the agent, and takes it back.

It knows neither Faust nor Kafka: `Backend` stands for the log, `deliver` for the agent, `Clock` for time. Effects are
sent as soon as a batch is taken back; a checkpoint saves its rows and the position.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ports.clock import Clock
from ports.log import AgentSpec, LogError, LogFailed, LogUnavailable, Record
from streams.transport.partition.backend import Backend, NewRecord, PositionRow, Recovered
from streams.transport.partition.batch import AgentGone, HeldRecord, PartBatch
from streams.transport.partition.checkpoints import Checkpoints, Counters, Limits
from streams.transport.partition.dead_letters import DeadLetterTopic, origin
from streams.transport.partition.positions import fold_point, last_folded, resume_point
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStore, RowStore, Stores
from streams.transport.partition.rows import Rows, Substituted, Table
from tables.errors import FormatTooNew

logger = logging.getLogger(__name__)

# Delivers a batch to the stream of its agent.
Deliver = Callable[[PartBatch], Awaitable[None]]

# Size of the first batch, while the size of its rows is unknown. It grows up to twofold with each batch of small rows.
FIRST_BATCH_RECORDS = 50
# Code of the dead letter of a record that made the agent raise when delivered alone.
AGENT_FAILED = "agent_failed"


class Part:
    """Implements `PartitionView`. Call `take`, then `run`; `stop` makes `run` finish the batch in hand and return."""

    def __init__(
        self,
        spec: AgentSpec,
        number: int,
        *,
        partitions: int,
        backend: Backend,
        clock: Clock,
        deliver: Deliver,
        dead_letters: DeadLetterTopic,
        interval: Callable[[], float],
        cache: RowCache,
        stores: Stores,
        limits: Limits | None = None,
    ) -> None:
        self.spec = spec
        self.number = number
        self.dead_letters = dead_letters
        self.end_at_take_over = 0
        self._partitions = partitions
        self._backend = backend
        self._clock = clock
        self._deliver = deliver
        self._limits = limits or Limits()
        self._cache = cache
        self._stores = stores
        self._saves = Checkpoints(
            spec,
            number,
            self._rows_of(MemoryStore({table.name: {} for table in spec.tables})),
            partitions=partitions,
            backend=backend,
            clock=clock,
            interval=interval,
            limits=self._limits,
            substituted=self._set_aside,
        )
        self._held = self._saves.held
        self._room = asyncio.Event()
        self._stopping = False
        self._idle = False
        self._fits = FIRST_BATCH_RECORDS if spec.tables else spec.batch
        """Largest batch now; small for large rows, which must not exceed the limits of a checkpoint by far."""
        self._reader: asyncio.Task[None] | None = None
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._gave_up = 0
        """Waiters that were cancelled and may still be in the heap."""

    def __repr__(self) -> str:
        return f"<{self.spec.name}[{self.number}] at {self.position}>"

    # ---- view for code outside the agent

    @property
    def position(self) -> int:
        return self._saves.next

    @property
    def counters(self) -> Counters:
        return self._saves.counters

    @property
    def checkpoint_age_seconds(self) -> float:
        """Seconds since the last checkpoint, or since there was nothing to save."""
        return self._saves.age_seconds

    @property
    def stateful(self) -> bool:
        return bool(self.spec.tables)

    @property
    def table_names(self) -> frozenset[str]:
        return frozenset(self._saves.rows.tables)

    @property
    def broken(self) -> bool:
        """True after a failed checkpoint; no other may follow."""
        return self._saves.broken

    def scan(
        self, table: str, decode: Callable[[bytes], Any] | None = None, keys: Iterable[bytes] | None = None
    ) -> Iterator[tuple[bytes, Any]]:
        return self._table(table).scan(decode, keys)

    def rows(self, table: str) -> Mapping[bytes, Any]:
        return self._table(table)

    def _table(self, table: str) -> Table:
        try:
            return self._saves.rows.tables[table]
        except KeyError:
            raise KeyError(
                f"agent {self.spec.name} has no table {table!r}, only {sorted(self._saves.rows.tables)}"
            ) from None

    async def folded(self, offset: int) -> None:
        """Return once the record at `offset` is folded. Raises LogUnavailable if the partition is given up first."""
        if self._stopping:
            raise LogUnavailable("partition_moving", f"{self.spec.name}[{self.number}] is being handed over")
        if offset >= self.position:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiters, (offset, id(waiter), waiter))
            try:
                await waiter
            finally:
                if waiter.cancelled():
                    self._forget_waiter()

    def _forget_waiter(self) -> None:
        """Note a cancelled waiter. The heap is cleared of them once they are half of it."""
        self._gave_up += 1
        if 2 * self._gave_up >= len(self._waiters):
            self._waiters = [one for one in self._waiters if not one[2].done()]
            heapq.heapify(self._waiters)
            self._gave_up = 0

    async def sent(self) -> None:
        await self._saves.sent()

    async def committed(self, offset: int) -> None:
        await self._backend.durable(offset)

    # ---- take-over

    async def take(self) -> None:
        """Recover rows and position. Raises PartitionNotServed, LogFailed for another partition count, and others."""
        tables = [table.name for table in self.spec.tables]
        store = await self._stores.open(self.spec.name, self.number, tables) if tables else MemoryStore({})
        try:
            recovered = await self._backend.take(store)
            await store.loaded()
            begin = await self._begin(recovered)
        except BaseException:
            store.close()
            raise
        self._saves.begin(begin, self._rows_of(store))
        self.end_at_take_over = recovered.end
        if self.spec.on_taken is not None:
            await self.spec.on_taken(self)
        self._report_unreadable()

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
                self._saves.last = await last_folded(self._backend, row, where, self._clock)
            await self._claim(row or PositionRow(begin, self._partitions, timestamp=0, checksum=0))
            if self._saves.last is not None:
                return begin
        self._backend.seek(begin)
        return begin

    async def _claim(self, row: PositionRow) -> None:
        """Write our fold number before anything is folded, so that no older release folds the same commands again."""
        if row.fold != self.spec.fold:
            await self._backend.checkpoint({}, row._replace(fold=self.spec.fold))

    # ---- serving

    async def run(self) -> None:
        """Serve the partition until `stop` and save a last checkpoint. Raises Fenced, LogFailed, and others."""
        reader = self._reader = self._clock.spawn(self._read(), name=f"{self.spec.name}[{self.number}] reads")
        saver = self._clock.spawn(self._saves.run(), name=f"{self.spec.name}[{self.number}] checkpoints")
        try:
            await asyncio.wait({reader, saver}, return_when=asyncio.FIRST_COMPLETED)
            if saver.done():
                saver.result()
            elif not reader.cancelled():
                reader.result()
            await self._wait_for_held()
            await self._saves.save()
        finally:
            self._stopping = True
            reader.cancel()
            saver.cancel()
            await asyncio.wait({reader, saver})
            for task in (reader, saver):
                if not task.cancelled():
                    task.exception()

    def limit(self, limits: Limits) -> None:
        """Change the limits, because the worker has more or fewer partitions now."""
        self._limits = self._saves.limits = limits

    async def checkpoint(self) -> None:
        """Make everything folded so far durable. Raises Fenced, LogFailed, errors of the backend."""
        await self._saves.save()

    def stop(self) -> None:
        """Request the end: the batch in hand is finished, and nothing more is fetched."""
        self._stopping = True
        self._wake_waiters_for_good()
        if self._idle and self._reader is not None:
            self._reader.cancel()

    def abort(self) -> None:
        """Stop waiting for the agent: the batch in hand stays unfolded."""
        self.stop()
        if self._reader is not None:
            self._reader.cancel()

    async def close(self) -> None:
        """Close backend and rows, and call `on_lost`."""
        self._stopping = True
        self._wake_waiters_for_good()
        self._saves.stop()
        try:
            await self._backend.close()
        finally:
            self._saves.rows.close()
            if self.spec.on_lost is not None:
                self.spec.on_lost(self.number)

    async def _read(self) -> None:
        fetch, batch = self._backend.fetch, self.spec.batch
        while not self._stopping:
            self._idle = True
            while len(self._held) >= self._limits.held:
                self._room.clear()
                await self._room.wait()
            records = await fetch(min(batch, self._fits, self._limits.held - len(self._held)))
            self._idle = False
            await self._work(records)
            await self._saves.keep_up()

    async def _work(self, records: Sequence[Record]) -> None:
        failure = await self._hand_over(records)
        if failure is None:
            return
        if len(records) == 1:
            self._bury(records[0], failure)
            return
        for record in records:  # only the record that fails alone becomes a dead letter
            if self._stopping:
                return
            failure = await self._hand_over([record])
            if failure is not None:
                self._bury(record, failure)

    async def _hand_over(self, records: Sequence[Record]) -> BaseException | None:
        """Deliver a batch and wait until the agent asks for the next. Return the agent's exception, if any."""
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
            if isinstance(failure, LogFailed):  # an unreadable row is no fault of the record
                raise failure
            if isinstance(failure, MemoryError):
                raise LogFailed("out_of_memory", "an agent ran out of memory; the worker ends") from failure
            if isinstance(failure, FormatTooNew):  # written by a newer release: a dead letter would lose a sound record
                code, message, place, remedy = failure.code, failure.message, failure.place, failure.remedy
                raise LogFailed(code, message, place=place, remedy=remedy) from failure
            if not isinstance(failure, AgentGone):
                return failure
            if self._stopping:
                raise asyncio.CancelledError
            await self._clock.sleep(0.01)

    def _accept(self, batch: PartBatch) -> None:
        saves, size = self._saves, batch.bytes
        for (topic, partition), records in batch.outputs.items():
            saves.send(topic, partition, records)
        for name, changed in batch.rows.items():
            size += saves.rows.apply(name, changed)
        if self.stateful:  # a row grows by at most the size of its commands and effects
            for record in batch:
                if record.value is not None:
                    size += len(record.value)
            within = self._limits.bytes * len(batch) // max(size, 1)
            self._fits = max(1, min(2 * self._fits, within))
        self._report_unreadable()
        self._advance(batch.last, len(batch), size)
        if self.spec.on_applied is not None:
            self.spec.on_applied(batch)

    def _advance(self, last: Record, count: int, size: int) -> None:
        self._saves.advance(last, count, size)
        while self._waiters and self._waiters[0][0] < self.position:
            waiter = heapq.heappop(self._waiters)[2]
            if not waiter.done():
                waiter.set_result(None)

    def _bury(self, record: Record, failure: BaseException) -> None:
        # A dead letter never gets the code of an error of the log.
        code = None if isinstance(failure, LogError) else getattr(failure, "code", None)
        logger.error("%s: the agent raised %s; dead-lettered", origin(record), type(failure).__name__)
        message = "".join(traceback.format_exception(failure))
        letter = self.dead_letters.letter(record, code if isinstance(code, str) else AGENT_FAILED, message)
        if letter is not None:
            self._saves.send(self.dead_letters.topic, self.dead_letters.partition(record.partition), [letter])
        self.count_dead_letter(AGENT_FAILED)
        self._advance(record, 1, 0 if letter is None else len(letter.value))

    def _set_aside(self, row: Substituted) -> None:
        """Report a row that could not be written to the agent, by a record of its own topic."""
        logger.error("%r: %s; a substitute is written", self, row.error)
        self._saves.send(self.spec.topic, self.number, [NewRecord(row.key, row.report)])

    def _report_unreadable(self) -> None:
        """Report rows that cannot be read to the agent, by records of its own topic, once each."""
        for row in self._saves.rows.take_unreadable():
            logger.error("%r: the row %r cannot be read; it is set aside", self, row.key.decode(errors="replace"))
            self._saves.send(self.spec.topic, self.number, [NewRecord(row.key, row.report)])

    def count_dead_letter(self, code: str) -> None:
        counts = self.counters.dead_letters
        counts[code] = counts.get(code, 0) + 1

    # ---- held records

    def hold(self, record: Record) -> HeldRecord:
        if self.stateful:
            raise RuntimeError(f"agent {self.spec.name} has tables: it answers in its batch, it cannot hold a record")
        self._held[record.offset] = record
        return HeldRecord(self, record)

    def release(self, offset: int) -> None:
        self._held.pop(offset, None)
        self._room.set()

    def send_soon(self, topic: str, partition: int, record: NewRecord) -> None:
        """Send with all other records of this turn of the event loop; does nothing after the partition was given up."""
        self._saves.send_soon(topic, partition, record)

    def _forget(self, batch: PartBatch) -> None:
        for offset in batch.held:
            self.release(offset)

    async def _wait_for_held(self) -> None:
        """Wait some time for held records: released ones are not processed again by the next owner."""
        try:
            async with self._clock.timeout(self._limits.handover_seconds):
                while self._held and not self.broken:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            logger.info("%r: %d records still held are left to the next owner", self, len(self._held))

    def _wake_waiters_for_good(self) -> None:
        waiters, self._waiters = self._waiters, []
        for _, _, waiter in waiters:
            if not waiter.done():
                moving = LogUnavailable("partition_moving", f"{self.spec.name}[{self.number}] is being handed over")
                waiter.set_exception(moving)
