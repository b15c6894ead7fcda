"""The directory of workers: the owner of each partition and its address, known from the heartbeats of all workers.

Each worker writes a heartbeat with its partitions once a second and after every change, and reads the heartbeats of
all from the end of the topic `owners`. A heartbeat is valid for one session timeout by the log's clock and is used for
routing only: a worker never answers for a partition that it does not own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec
import structlog

from ports.clock import Clock
from ports.log import LogUnavailable, Record, RecordTooLarge, TailedLog
from streams.api import HERE, Unavailable
from streams.dead_letters import dead_letter_of
from streams.log_clock import LogClock
from streams.topics import DEADLETTERS, OWNERS, prefixed

BEAT_SECONDS = 1.0
# The group's session timeout: after it, the partitions of a silent worker have another owner, or none.
VALID_MS = 6_000
FORGOTTEN_MS = 60_000
# Heartbeats read at the start, so that a new worker does not wait for the next ones.
HEARTBEATS_READ_BACK = 200
AGAIN_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Heartbeat(msgspec.Struct, frozen=True):
    """The heartbeat of a worker. Only the engine reads it, so a field with a default may be added."""

    worker: str
    address: str
    """Address of its gRPC for other workers, `host:port`."""
    partitions: list[int]
    generation: int
    """Generation of the group that assigned these partitions."""


@dataclass(frozen=True, slots=True)
class ReceivedHeartbeat:
    """A heartbeat with its time and offset in the log."""

    heartbeat: Heartbeat
    timestamp: int
    offset: int
    received_at: float
    """Monotonic time: a heartbeat whose append time is ahead ends no later than others."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Heartbeat).decode


class WorkerDirectory:
    """Implements `streams.api.Directory` for several workers on one log."""

    def __init__(
        self,
        log: TailedLog,
        clock: Clock,
        log_clock: LogClock,
        *,
        prefix: str,
        partitions: int,
        worker: str,
        address: Callable[[], str],
        mine: Callable[[], Collection[int]],
        generation: Callable[[], int],
    ) -> None:
        """`mine`: partitions assigned to this worker, including any it cannot serve; `worker`: a unique id."""
        self.partitions = partitions
        self._log = log
        self._clock = clock
        self._log_clock = log_clock
        self._topic = prefixed(prefix, OWNERS)
        self._letters = prefixed(prefix, DEADLETTERS)
        self._last_dead_letter = -1
        self._worker = worker
        self._address = address
        self._mine = mine
        self._generation = generation
        self._heartbeats: dict[str, ReceivedHeartbeat] = {}
        self._due_now = asyncio.Event()

    # -- look-ups

    def partition_of(self, instance_id: str) -> int:
        return self._log.partition_of(instance_id.encode(), self.partitions)

    def address_of(self, partition: int) -> str:
        if partition in self._mine():
            return HERE
        claims = [received for received in self._valid_heartbeats() if partition in received.heartbeat.partitions]
        if not claims:
            raise Unavailable(f"partition {partition} is not served: moving: no worker has announced that it owns it")
        return max(claims, key=lambda received: (received.heartbeat.generation, received.offset)).heartbeat.address

    def partitions_by_address(self) -> Mapping[str, Collection[int]]:
        """Return partitions by the address of their owner. Raises Unavailable when one has no owner."""
        found: dict[str, list[int]] = {}
        for number in range(self.partitions):
            found.setdefault(self.address_of(number), []).append(number)
        return found

    def addresses(self) -> Collection[str]:
        return {received.heartbeat.address for received in self._valid_heartbeats()}

    def _valid_heartbeats(self) -> Iterable[ReceivedHeartbeat]:
        since, received_since = self._log_clock.now() - VALID_MS, self._clock.monotonic() - VALID_MS / 1000
        return [
            received
            for worker, received in self._heartbeats.items()
            if worker != self._worker and received.timestamp > since and received.received_at > received_since
        ]

    # -- own heartbeats

    def changed(self) -> None:
        """Send a heartbeat now, because the owned partitions changed."""
        self._due_now.set()

    async def beat(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await self._send_heartbeat(sorted(self._mine()))
            try:
                async with self._clock.timeout(BEAT_SECONDS):
                    await self._due_now.wait()
            except TimeoutError:
                continue
            self._due_now.clear()

    async def _send_heartbeat(self, partitions: list[int]) -> None:
        heartbeat = Heartbeat(self._worker, self._address(), partitions, self._generation())
        try:
            async with self._clock.timeout(VALID_MS / 1000):
                position = await self._log.append(self._topic, 0, self._worker.encode(), _encode(heartbeat))
        except (LogUnavailable, RecordTooLarge, TimeoutError) as error:
            log.warning("heartbeat_failed", reason=str(error) or "not acknowledged in time")
            return
        self._log_clock.acknowledged(position.timestamp)

    # -- heartbeats of all workers

    async def listen(self) -> None:
        """Read all heartbeats until cancelled."""
        while True:
            try:
                ((start, end),) = await self._log.ends(self._topic)
                async for records in self._log.tail(self._topic, 0, max(start, end - HEARTBEATS_READ_BACK)):
                    for record in records:
                        try:
                            self.receive(record)
                        except ValueError as error:
                            await self._set_aside(record, str(error))
            except LogUnavailable as error:
                log.warning("heartbeats_not_read", reason=str(error))
            await self._clock.sleep(AGAIN_SECONDS)

    def receive(self, record: Record) -> None:
        """Take one record of the topic. Raises ValueError for a record that is no heartbeat."""
        try:
            heartbeat = _decode(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no heartbeat: {error}") from None
        self._log_clock.observe(record.timestamp)
        self._heartbeats[heartbeat.worker] = ReceivedHeartbeat(
            heartbeat, record.timestamp, record.offset, self._clock.monotonic()
        )
        forgotten = self._log_clock.now() - FORGOTTEN_MS
        for worker in [worker for worker, received in self._heartbeats.items() if received.timestamp < forgotten]:
            del self._heartbeats[worker]

    async def _set_aside(self, record: Record, message: str) -> None:
        """Dead-letter an invalid heartbeat. Only the owner of partition 0 does it, and only once per record."""
        log.warning("heartbeat_undecodable", offset=record.offset, reason=message)
        if 0 not in self._mine() or record.offset <= self._last_dead_letter:
            return
        await self._log.append(self._letters, 0, *dead_letter_of(record, "heartbeat_undecodable", message))
        self._last_dead_letter = record.offset
