"""Clients' commands: appended to the log, then answered by the fold.

A start's definition is put into its partition before the start, once for each partition and process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from ports.clock import Clock
from ports.log import Header, Log, LogFailed, LogUnavailable, Position
from ports.provenance import TRACEPARENT
from streams.admission import Admission
from streams.api import Operation, Overloaded, ReadApi, Reply, Unavailable
from streams.log_clock import LogClock
from streams.partitions import LONGEST_ID, Partitions
from streams.topics import CORRELATION_ID
from streams.waiters import FOLD_SECONDS, FoldResult, ReplyKey, ReplyWaiters
from tables.commands import PutDefinition, Start, encode_command
from tables.definition import Definition

log = structlog.get_logger(__name__)

# How long a call waits for the log's acknowledgement.
WRITE_SECONDS = 5.0
# Retry hint after a failure of the log for good: this worker ends, and the next owner answers.
LOG_FAILED_SECONDS = 2.0


class CommandLog:
    """Appends commands to the partitions served here and waits for the fold; implements `CommandApi`."""

    def __init__(
        self,
        log: Log,
        topic: str,
        clock: Clock,
        log_clock: LogClock,
        *,
        partitions: Partitions,
        reads: ReadApi,
        max_lag: int,
    ) -> None:
        """`topic`: full name of `commands`; `max_lag`: unfolded commands above which starts are refused, 0 for none."""
        self.replies = ReplyWaiters()
        self.admission = Admission(max_lag, clock)
        self._log = log
        self._topic = topic
        self._clock = clock
        self._log_clock = log_clock
        self._partitions = partitions
        self._reads = reads
        self._put: dict[tuple[int, str], asyncio.Lock | None] = {}
        """A lock while a definition is being put, by partition and hash; None once it is durable."""

    def lost(self, number: int) -> None:
        """Forget the definitions put into a partition that another worker has now."""
        self._put = {key: lock for key, lock in self._put.items() if key[0] != number}

    # -- calls of clients

    async def start(self, definition: Definition, start: Start) -> Reply:
        view = self._partitions.appendable(start.instance_id)
        with self.admission.start(view.number, view.position):
            with self.admission.appending(view.number):  # counts also while its definition is being put
                await self._put_definition(view.number, definition)
            return await self._append(view.number, start, start.correlation_id, start.traceparent, patient=True)

    async def operate(self, command: Operation, traceparent: str = "") -> Reply:
        try:
            found = await self._reads.find(command.instance_id)
            if found is None:
                return Reply("unknown_instance", f"there is no ceremony {command.instance_id[:LONGEST_ID]!r}")
            view = self._partitions.appendable(command.instance_id)
            return await self._append(view.number, command, found.row.correlation_id, traceparent, patient=False)
        except Unavailable as error:
            raise error.repeatable_under(command.command_id) from error

    def overload(self, calls: int) -> Overloaded | None:
        return self.admission.overload(calls, self._partitions.positions())

    # -- commands of the timers

    async def send(self, partition: int, key: bytes, value: bytes, headers: Sequence[Header] = ()) -> Position:
        """Append a command and return its position. Raises LogUnavailable."""
        position = await self._log.append(self._topic, partition, key, value, headers)
        self.admission.appended(partition, position.offset)
        return position

    # -- internals

    async def _put_definition(self, partition: int, definition: Definition) -> None:
        """Put a definition once per partition and process; it is durable before the Start that needs it is appended."""
        key = (partition, definition.hash)
        if key in self._put and self._put[key] is None:
            return
        lock = self._put.setdefault(key, asyncio.Lock())
        if lock is None:
            return
        async with lock:
            if self._put.get(key) is None and key in self._put:
                return
            command = PutDefinition(hash=definition.hash, text=definition.text)
            await self._write(partition, definition.hash.encode(), encode_command(command))
            self._put[key] = None

    async def _append(
        self, partition: int, command: Start | Operation, correlation_id: str, traceparent: str, *, patient: bool
    ) -> Reply:
        """Append and wait for the fold; `patient`: a durable command is enough when the fold takes longer (a Start)."""
        expected = ReplyKey.of(command)
        future = self.replies.expect(expected)
        try:
            headers = [(CORRELATION_ID, correlation_id.encode())]
            if traceparent:
                headers.append((TRACEPARENT, traceparent.encode()))
            key = command.instance_id.encode()
            position = await self._write(partition, key, encode_command(command), headers)
            folded = await self._folded(future)
        finally:
            self.replies.forget(expected, future)
        if folded is not None:
            return Reply(folded.code, folded.message, partition, position.offset)
        if not patient:
            raise Unavailable(f"durable, but not folded within {FOLD_SECONDS:g} s")
        return Reply(partition=partition, offset=position.offset, folded=False)

    async def _folded(self, future: asyncio.Future[FoldResult]) -> FoldResult | None:
        """The fold's answer, or None when it took longer than FOLD_SECONDS."""
        try:
            async with self._clock.timeout(FOLD_SECONDS):
                return await asyncio.shield(future)
        except TimeoutError:
            return None

    async def _write(self, partition: int, key: bytes, value: bytes, headers: Sequence[Header] = ()) -> Position:
        try:
            with self.admission.appending(partition):
                async with self._clock.timeout(WRITE_SECONDS):
                    position = await self._log.append(self._topic, partition, key, value, headers)
        except (LogUnavailable, LogFailed, TimeoutError) as error:
            log.warning("append_failed", reason=str(error) or f"no acknowledgement within {WRITE_SECONDS:g} s")
            pause = LOG_FAILED_SECONDS if isinstance(error, LogFailed) else 1.0
            raise Unavailable("the log cannot be reached; repeating the call is safe", pause) from error
        self.admission.appended(partition, position.offset)
        self._log_clock.acknowledged(position.timestamp)
        return position
