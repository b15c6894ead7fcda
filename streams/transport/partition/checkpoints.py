"""What one partition has done and not made durable yet, and the checkpoints that make it so.

The order of writes is the engine's whole guarantee (design 5): a checkpoint takes rows, effects and position of one
moment, waits for exactly those effects, and then writes rows and position in one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ports.clock import Clock
from ports.log import AgentSpec, LogFailed, Record
from streams.transport.partition.backend import Backend, NewRecord, PositionRow
from streams.transport.partition.positions import checksum
from streams.transport.partition.rows import Dirty, Rows


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


@dataclass(slots=True)
class Counters:
    """What a part has done since it was taken; metrics read it."""

    records: int = 0
    batches: int = 0
    checkpoints: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)


class _Snapshot(NamedTuple):
    """What one checkpoint writes; taken in one step, so that all of it is of one moment."""

    pending: list[asyncio.Future[Any]]
    dirty: Dirty
    commit: int
    last: Record | None


class Checkpoints:
    """Of one part: it tells what it has done as it goes, `run` saves it from time to time, and `save` at once."""

    def __init__(
        self,
        spec: AgentSpec,
        number: int,
        rows: Rows,
        *,
        partitions: int,
        backend: Backend,
        clock: Clock,
        interval: Callable[[], float],
        limits: Limits,
    ) -> None:
        self.rows = rows
        self.next = 0
        """Offset of the next record to be folded."""
        self.last: Record | None = None
        """The record before it."""
        self.held: dict[int, Record] = {}
        """Records that are answered later, by offset: the lowest of them is what may be committed."""
        self.counters = Counters()
        self._name = f"{spec.name}[{number}]"
        self._spec = spec
        self._partitions = partitions
        self._backend = backend
        self._clock = clock
        self._interval = interval
        self._limits = limits
        self._saved = -1
        self._pending: list[asyncio.Future[Any]] = []
        self._saving: list[asyncio.Future[Any]] = []
        """Those that a checkpoint waits for."""
        self._outbox: dict[tuple[str, int], list[NewRecord]] = {}
        self._flush: asyncio.Handle | None = None
        self._commands = 0
        self._bytes = 0
        self._due = asyncio.Event()
        self._lock = asyncio.Lock()
        self._failure: BaseException | None = None
        self._closed = False

    @property
    def broken(self) -> bool:
        """A checkpoint failed: none may follow it."""
        return self._failure is not None

    # ---- what is done and not durable yet

    def begin(self, offset: int, rows: Rows) -> None:
        """These rows are what everything below `offset` has made."""
        self.rows.close()
        self.rows = rows
        self.next = self._saved = offset

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> None:
        """Hand records to the log; the next checkpoint waits for their acknowledgement."""
        self._pending.extend(self._backend.send(topic, partition, records))

    def send_soon(self, topic: str, partition: int, record: NewRecord) -> None:
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
            self.send(topic, partition, records)

    async def sent(self) -> None:
        """Return once all that was sent is acknowledged or has failed; what became of it is the checkpoints' affair."""
        if under_way := [ack for ack in (*self._saving, *self._pending) if not ack.done()]:
            await asyncio.wait(under_way)

    def advance(self, last: Record, count: int, size: int) -> None:
        """`count` records up to `last` are folded; `size`: bytes of rows and effects they brought."""
        self.next = last.offset + 1
        self.last = last
        self._commands += count
        self._bytes += size
        self.counters.records += count
        self.counters.batches += 1

    async def keep_up(self) -> None:
        """Have saved what has become much; wait for it where it has become twice as much, as the log is too slow."""
        commands, size = self._limits.commands, self._limits.bytes
        if self._commands >= commands or self._bytes >= size:
            self._due.set()
            if self._commands >= 2 * commands or self._bytes >= 2 * size:
                await self.save()

    # ---- saving it

    async def run(self) -> None:
        """Save at the interval, and when much has come."""
        while True:
            try:
                async with self._clock.timeout(self._interval()):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            await self.save()
            await self.rows.tidy()

    async def save(self) -> None:
        """Make durable what is folded so far.

        One that fails is never followed by another: rows and effects taken here would be missing below the position
        of the next; every later call raises the same failure. Raises Fenced, LogFailed, what the backend raises.
        """
        async with self._lock:
            if self._failure is not None:
                raise self._failure
            if not self._moved():
                return
            began = self._clock.monotonic()
            try:
                rows = await self._save_snapshot(self._snapshot())
            except BaseException as failure:
                self._failure = failure
                raise
            self.counters.checkpoints += 1
            if self._spec.on_saved is not None:
                self._spec.on_saved(rows, self._clock.monotonic() - began)

    async def _save_snapshot(self, snapshot: _Snapshot) -> int:
        """Returns how many rows it wrote."""
        await self._acknowledged(snapshot.pending)
        self._saving = []
        rows = await self._write(snapshot) if self.rows.tables else 0
        self._backend.commit(snapshot.commit)
        self._saved = snapshot.commit
        return rows

    def _moved(self) -> bool:
        return bool(self._pending or self._outbox) or self._committable() != self._saved

    def _committable(self) -> int:
        return min(self.held) if self.held else self.next

    def _snapshot(self) -> _Snapshot:
        if self._outbox:
            self._flush_outbox()
        pending, self._pending = self._pending, []
        self._saving = pending
        self._commands = self._bytes = 0
        return _Snapshot(pending, self.rows.take_dirty(), self._committable(), self.last)

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
                "send_refused", f"an effect of {self._name} was not acknowledged ({type(failure).__name__})"
            ) from failure
        if failure is not None:
            raise failure

    async def _write(self, snapshot: _Snapshot) -> int:
        encoded = await self.rows.encode(snapshot.dirty)
        last = snapshot.last
        position = PositionRow(
            next=snapshot.commit,
            partitions=self._partitions,
            timestamp=0 if last is None else last.timestamp,
            checksum=0 if last is None else checksum(last),
        )
        await self._backend.checkpoint(encoded, position)
        await self.rows.saved(encoded)
        return sum(map(len, encoded.values()))

    # ---- giving it up

    def stop(self) -> None:
        """Send nothing more, and do not wait for what was sent: a failure among it is no news."""
        self._closed = True
        if self._flush is not None:
            self._flush.cancel()
        for ack in self._pending:
            ack.add_done_callback(_retrieve)


def _retrieve(ack: asyncio.Future[Any]) -> None:
    if not ack.cancelled():
        ack.exception()
