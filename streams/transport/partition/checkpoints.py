"""Checkpoints of one partition, which make its folded work durable.

The order of writes is the engine's whole guarantee (design 5). A checkpoint

1. takes rows, effects and position of one moment,
2. waits until the log has acknowledged exactly those effects,
3. writes the rows and the position in one transaction.
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
from streams.transport.partition.rows import Dirty, Rows, Substituted


@dataclass(frozen=True, slots=True)
class Limits:
    """Amounts of unsaved work at which a part checkpoints before its interval, which `assignment.py` sets.

    Reading continues during a checkpoint; at twice `commands` or `bytes` it waits for the log.
    """

    commands: int = 5_000
    bytes: int = 8 * 1024 * 1024
    held: int = 1_000
    """Records that an agent without tables may hold unanswered."""
    handover_seconds: float = 2.0
    """Time a part that is given up waits for records that its agent holds."""


@dataclass(slots=True)
class Counters:
    """Counts of a part since it was taken, for metrics."""

    records: int = 0
    batches: int = 0
    checkpoints: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)


class CheckpointSize(NamedTuple):
    """The size of one checkpoint."""

    rows: int = 0
    bytes: int = 0
    """Of keys and values."""


class _Snapshot(NamedTuple):
    """The work that one checkpoint saves, all of one moment."""

    pending: list[asyncio.Future[Any]]
    dirty: Dirty
    commit: int
    last: Record | None


class Checkpoints:
    """Saves the work of one part, which reports it as it goes: `run` from time to time, `save` at once."""

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
        substituted: Callable[[Substituted], None],
    ) -> None:
        """`substituted` hears of each row that could not be written, before the checkpoint with its substitute."""
        self.rows = rows
        self.next = 0
        """Offset of the next record to be folded."""
        self.last: Record | None = None
        """The record before it."""
        self.held: dict[int, Record] = {}
        """Records answered later, by offset; the lowest offset is the highest that may be committed."""
        self.counters = Counters()
        self._name = f"{spec.name}[{number}]"
        self._spec = spec
        self._partitions = partitions
        self._backend = backend
        self._clock = clock
        self._interval = interval
        self.limits = limits
        self._substituted = substituted
        self._saved = -1
        self._saved_at = clock.monotonic()
        """Time at which nothing was unsaved, or a checkpoint was done."""
        self._pending: list[asyncio.Future[Any]] = []
        self._saving: list[asyncio.Future[Any]] = []
        """Acknowledgements that the running checkpoint waits for."""
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
        """True after a failed checkpoint; no other may follow."""
        return self._failure is not None

    @property
    def age_seconds(self) -> float:
        """Seconds since the last checkpoint, or since a look found nothing to save; it grows while one hangs."""
        return self._clock.monotonic() - self._saved_at

    # ---- unsaved work

    def begin(self, offset: int, rows: Rows) -> None:
        """Begin at `offset` with the rows of all records below it."""
        self.rows.close()
        self.rows = rows
        self.next = self._saved = offset
        self._saved_at = self._clock.monotonic()

    def send(self, topic: str, partition: int, records: Sequence[NewRecord]) -> None:
        """Send records; the next checkpoint waits for their acknowledgement."""
        self._pending.extend(self._backend.send(topic, partition, records))

    def send_soon(self, topic: str, partition: int, record: NewRecord) -> None:
        """Send in one produce batch with all other records of this turn of the event loop.

        Does nothing after the partition was given up: its next owner processes the record again.
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
        """Return once everything sent is acknowledged or has failed; checkpoints handle failures."""
        if under_way := [ack for ack in (*self._saving, *self._pending) if not ack.done()]:
            await asyncio.wait(under_way)

    def advance(self, last: Record, count: int, size: int) -> None:
        """Note that `count` records up to `last` are folded; `size`: bytes of their rows and effects."""
        self.next = last.offset + 1
        self.last = last
        self._commands += count
        self._bytes += size
        self.counters.records += count
        self.counters.batches += 1

    async def keep_up(self) -> None:
        """Request a checkpoint at the limits; at twice the limits the log is too slow, so wait for the checkpoint."""
        commands, size = self.limits.commands, self.limits.bytes
        if self._commands >= commands or self._bytes >= size:
            self._due.set()
            if self._commands >= 2 * commands or self._bytes >= 2 * size:
                await self.save()

    # ---- saving

    async def run(self) -> None:
        """Save at every interval, and when the limits are reached."""
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
        """Make everything folded so far durable. Raises Fenced, LogFailed, and errors of the backend.

        No checkpoint follows a failed one, as its rows and effects would be missing below the next position; every
        later call raises the same failure.
        """
        async with self._lock:
            if self._failure is not None:
                raise self._failure
            if not self._moved():
                self._saved_at = self._clock.monotonic()
                return
            began = self._clock.monotonic()
            try:
                written = await self._save_snapshot(self._snapshot())
            except BaseException as failure:
                self._failure = failure
                raise
            self.counters.checkpoints += 1
            self._saved_at = self._clock.monotonic()
            if self._spec.on_saved is not None:
                self._spec.on_saved(written.rows, written.bytes, self._saved_at - began)

    async def _save_snapshot(self, snapshot: _Snapshot) -> CheckpointSize:
        await self._acknowledged(snapshot.pending)
        self._saving = []
        written = await self._write(snapshot) if self.rows.tables else CheckpointSize()
        self._backend.commit(snapshot.commit)
        self._saved = snapshot.commit
        return written

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
                await asyncio.wait((ack,))  # shared with other callers: a cancelled checkpoint must not cancel it
            try:
                ack.result()
            except Exception as error:  # noqa: BLE001 - the exception of every one is retrieved
                failure = failure or error
        if failure is not None and not isinstance(failure, LogFailed):
            raise LogFailed(
                "send_refused", f"an effect of {self._name} was not acknowledged ({type(failure).__name__})"
            ) from failure
        if failure is not None:
            raise failure

    async def _write(self, snapshot: _Snapshot) -> CheckpointSize:
        encoded = await self.rows.encode(snapshot.dirty)
        sent = len(self._pending)
        for one in self.rows.take_substituted():
            self._substituted(one)
        await self._acknowledged(self._pending[sent:])
        last = snapshot.last
        position = PositionRow(
            next=snapshot.commit,
            partitions=self._partitions,
            timestamp=0 if last is None else last.timestamp,
            checksum=0 if last is None else checksum(last),
            fold=self._spec.fold,
        )
        await self._backend.checkpoint(encoded, position)
        await self.rows.saved(encoded)
        sizes = [len(key) + len(value or b"") for rows in encoded.values() for key, value in rows.items()]
        return CheckpointSize(len(sizes), sum(sizes))

    # ---- giving up

    def stop(self) -> None:
        """Send nothing more, and do not wait for anything sent; its failures do not matter any more."""
        self._closed = True
        if self._flush is not None:
            self._flush.cancel()
        for ack in self._pending:
            ack.add_done_callback(_retrieve)


def _retrieve(ack: asyncio.Future[Any]) -> None:
    if not ack.cancelled():
        ack.exception()
