"""Faust's interface of a driver: consumer, producer and transport, without Faust's own fetching and committing.

A driver's transport provides the log, a backend per partition and the assignment of partitions; the rest is here.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from faust.transport import base
from faust.transport.consumer import Consumer as FaustConsumer
from faust.types import TP, ConsumerMessage

from ports.log import AgentSpec, Log, TailedLog
from streams.transport.partition.backend import Backend
from streams.transport.partition.batch import PartBatch
from streams.transport.partition.ownership import IsCurrent

# How long a hand-over waits for agents to finish the batches in hand.
GIVE_UP_SECONDS = 10.0


class MemberConsumer(FaustConsumer):
    """Consumer of a worker that owns every partition (one process); a group's consumer overrides `subscribe`."""

    app: Any
    consumer_stopped_errors = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tps: set[TP] = set()

    # ---- assignment

    @property
    def fresh(self) -> bool:
        """False when another member may have replaced this one without its knowledge; always true without a group."""
        return True

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Assign every partition at once, as no other worker shares the log."""
        count = self.app.partitions
        tps = {TP(topic, number) for topic in topics for number in range(count)}
        self.add_future(self._assign_everything(tps))

    async def _assign_everything(self, tps: set[TP]) -> None:
        self.app.on_rebalance_start()
        self.app.consumer_generation_id += 1
        self._tps = tps
        await self.on_partitions_assigned(tps, self.app.consumer_generation_id)
        self.app.on_rebalance_end()

    def take_over(self, assigned: Iterable[TP], generation: int) -> None:
        """Serve an assignment for which Faust has set up its agents."""
        self.app.owner.take_over(self.pairs_of(assigned), self.is_current(generation))

    def pairs_of(self, tps: Iterable[TP]) -> list[tuple[str, int]]:
        """Return (agent, partition) for each partition that an agent reads."""
        by_topic = {spec.topic: name for name, spec in self.app.owner.specs.items()}
        return [(by_topic[tp.topic], tp.partition) for tp in tps if tp.topic in by_topic]

    def is_current(self, generation: int) -> IsCurrent:
        return lambda: generation == self.app.consumer_generation_id and not self.should_stop

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self.give_up()
        await super().on_partitions_revoked(revoked)

    async def give_up(self) -> None:
        """Finish, checkpoint and give up every partition; after a crash, without waiting for agents."""
        await self.app.owner.give_up(0.0 if self.app.crashed else GIVE_UP_SECONDS)

    async def on_stop(self) -> None:
        await self.give_up()

    async def deliver(self, batch: PartBatch) -> None:
        """Send the batch as one event through Faust's conductor into the stream of its agent."""
        last = batch.last
        tp = TP(last.topic, last.partition)
        value: Any = batch  # Faust expects bytes here; `BatchSchema` passes it on
        await self.callback(
            ConsumerMessage(
                last.topic,
                last.partition,
                last.offset,
                last.timestamp / 1000,
                1,
                None,
                None,
                value,
                None,
                0,
                0,
                tp,
                generation_id=self.app.consumer_generation_id,
            )
        )

    # ---- Faust's own fetching and committing, which is not used

    def track_message(self, message: Any) -> None:
        """Count the message only: its part waits for the batch, not Faust."""
        self._on_message_in(message.tp, message.offset, message)

    async def on_task_error(self, exc: BaseException) -> None:
        """Do nothing, as the stream has reported the error to the part."""

    def assignment(self) -> set[TP]:
        return set(self._tps)

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: FBT001, FBT002
        return False

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return False

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109
        await self.sleep(timeout)
        return {}

    def _to_message(self, tp: TP, record: Any) -> Any:
        raise NotImplementedError("batches come from the parts")

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def topic_partitions(self, topic: str) -> int:
        return int(self.app.partitions)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int:
        if partition is not None:
            return partition
        return int(self.app.commit_log.partition_of(key or b"", self.app.partitions))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        return {}

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None: ...

    async def _seek(self, partition: TP, offset: int) -> None: ...

    async def position(self, tp: TP) -> int:
        return 0

    def highwater(self, tp: TP) -> int:
        return 0

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, 0)

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, 0)

    async def create_topic(self, *arguments: Any, **options: Any) -> None:
        """Do nothing: the log creates topics with their settings before anything subscribes."""


class Producer(base.Producer):
    """Implements Faust's `topic.send`: durable when it returns. Agents send through their batch instead."""

    def __post_init__(self) -> None: ...

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> Any:
        app: Any = self.app
        target = app.commit_log.partition_of(key or b"", app.partitions) if partition is None else partition
        position = await app.commit_log.append(topic, target, key, value or b"", list(dict(headers or {}).items()))
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        sent.set_result(position)
        return sent

    async def send_and_wait(self, *arguments: Any, **options: Any) -> Any:
        return await (await self.send(*arguments, **options))

    async def flush(self) -> None: ...

    def key_partition(self, topic: str, key: bytes) -> TP:
        app: Any = self.app
        return TP(topic, app.commit_log.partition_of(key, app.partitions))

    async def create_topic(self, *arguments: Any, **options: Any) -> None:
        """Do nothing: the log creates topics."""

    def supports_headers(self) -> bool:
        return True


class GroupTransport(base.Transport):
    """Base of both drivers, which provide `log`, `backend`, and a `Consumer` that gets partitions assigned."""

    Consumer = MemberConsumer
    Producer = Producer
    app: Any
    default_port = 0
    driver_version = "ceremony"
    keeps_consumed = True
    """False where the log deletes the records of commands and step requests once they are consumed."""

    @property
    @abstractmethod
    def log(self) -> Log:
        """The log beside the agents; started and stopped by the app."""

    @property
    def shared(self) -> TailedLog | None:
        """The log if several workers share it; None for a single worker."""
        return None

    @abstractmethod
    def backend(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> Backend:
        """Return the backend for the part of one partition."""

    async def close(self) -> None:
        """Called when the app stops, after the last part was given up and before the log stops."""
