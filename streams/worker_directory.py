"""Which worker owns a partition, and where it answers: a directory that every worker keeps from the others' heartbeats.

Each worker says once a second, and whenever something changes, what it owns; every worker reads what all say from the
end of the topic `owners`. What is said is believed for a session timeout by the log's clock, and only to find the way:
whoever is asked answers for nothing that it does not own.
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
# The session timeout of the group: then the partitions of a silent worker have another owner, or none.
VALID_MS = 6_000
FORGOTTEN_MS = 60_000
# Heartbeats read back at the start, so that a new worker need not wait for the next ones.
HEARTBEATS_READ_BACK = 200
AGAIN_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Heartbeat(msgspec.Struct, frozen=True):
    """What a worker says of itself; the format is the engine's alone, so a field may be added with a default."""

    worker: str
    address: str
    """Where its gRPC is reached by the others, `host:port`."""
    partitions: list[int]
    generation: int
    """Of the group, when it was given these partitions."""


@dataclass(frozen=True, slots=True)
class ReceivedHeartbeat:
    """A heartbeat and where it stands in the log."""

    heartbeat: Heartbeat
    timestamp: int
    offset: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Heartbeat).decode


class WorkerDirectory:
    """Fulfils `front.Directory` for several workers on one log."""

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
        """`mine`: the partitions that this worker answers for, be it with a refusal; `worker`: no other has this id."""
        self.partitions = partitions
        self._log = log
        self._clock = clock
        self._log_clock = log_clock
        self._topic = prefixed(prefix, OWNERS)
        self._letters = prefixed(prefix, DEADLETTERS)
        self._aside = -1
        self._worker = worker
        self._address = address
        self._mine = mine
        self._generation = generation
        self._said: dict[str, ReceivedHeartbeat] = {}
        self._poked = asyncio.Event()

    # -- asking

    def partition_of(self, instance_id: str) -> int:
        return self._log.partition_of(instance_id.encode(), self.partitions)

    def where(self, partition: int) -> str:
        if partition in self._mine():
            return HERE
        claims = [said for said in self._believed() if partition in said.heartbeat.partitions]
        if not claims:
            raise Unavailable(f"partition {partition} is not served: moving: no worker has said that it owns it")
        return max(claims, key=lambda said: (said.heartbeat.generation, said.offset)).heartbeat.address

    def everywhere(self) -> Mapping[str, Collection[int]]:
        """Partitions by the address that answers for them. Raises Unavailable where one has no owner."""
        found: dict[str, list[int]] = {}
        for number in range(self.partitions):
            found.setdefault(self.where(number), []).append(number)
        return found

    def addresses(self) -> Collection[str]:
        return {said.heartbeat.address for said in self._believed()}

    def _believed(self) -> Iterable[ReceivedHeartbeat]:
        since = self._log_clock.now() - VALID_MS
        return [said for worker, said in self._said.items() if worker != self._worker and said.timestamp > since]

    # -- saying

    def changed(self) -> None:
        """What we own has changed: say so at once."""
        self._poked.set()

    async def beat(self) -> None:
        """Say what we own, for ever."""
        while True:
            await self._say(sorted(self._mine()))
            try:
                async with self._clock.timeout(BEAT_SECONDS):
                    await self._poked.wait()
            except TimeoutError:
                continue
            self._poked.clear()

    async def _say(self, partitions: list[int]) -> None:
        said = Heartbeat(self._worker, self._address(), partitions, self._generation())
        try:
            async with self._clock.timeout(VALID_MS / 1000):
                position = await self._log.append(self._topic, 0, self._worker.encode(), _encode(said))
        except (LogUnavailable, RecordTooLarge, TimeoutError) as error:
            log.warning("heartbeat_failed", reason=str(error) or "not acknowledged in time")
            return
        self._log_clock.acknowledged(position.timestamp)

    # -- hearing

    async def listen(self) -> None:
        """Hear what all say, for ever."""
        while True:
            try:
                ((start, end),) = await self._log.ends(self._topic)
                async for records in self._log.tail(self._topic, 0, max(start, end - HEARTBEATS_READ_BACK)):
                    for record in records:
                        try:
                            self.hear(record)
                        except ValueError as error:
                            await self._set_aside(record, str(error))
            except LogUnavailable as error:
                log.warning("owners_not_heard", reason=str(error))
            await self._clock.sleep(AGAIN_SECONDS)

    def hear(self, record: Record) -> None:
        """Take one record of the topic. Raises ValueError: what is no heartbeat says nothing."""
        try:
            heartbeat = _decode(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no heartbeat: {error}") from None
        self._log_clock.read(record.timestamp)
        self._said[heartbeat.worker] = ReceivedHeartbeat(heartbeat, record.timestamp, record.offset)
        forgotten = self._log_clock.now() - FORGOTTEN_MS
        for worker in [worker for worker, said in self._said.items() if said.timestamp < forgotten]:
            del self._said[worker]

    async def _set_aside(self, record: Record, message: str) -> None:
        """All hear it; whoever owns partition 0 makes a dead letter of it, and a reader that comes back not again."""
        log.warning("heartbeat_undecodable", offset=record.offset, reason=message)
        if 0 not in self._mine() or record.offset <= self._aside:
            return
        await self._log.append(self._letters, 0, *dead_letter_of(record, "heartbeat_undecodable", message))
        self._aside = record.offset
