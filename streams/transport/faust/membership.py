"""What Faust asks of a driver, answered without its own fetching, acknowledging and committing.

A driver's transport gives the log, a backend per partition, and the way partitions are assigned; all else is here.
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
from streams.transport.partition.assignment import IsCurrent
from streams.transport.partition.backend import Backend
from streams.transport.partition.batch import PartBatch

# How long a hand-over waits for agents to finish the batches in hand.
GIVE_UP_SECONDS = 10.0


class Membership(FaustConsumer):
    """Consumer of a worker that owns every partition (one process); a group's consumer overrides `subscribe`."""

    app: Any
    consumer_stopped_errors = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tps: set[TP] = set()

    # ---- assignment

    @property
    def fresh(self) -> bool:
        """Whether what is assigned is surely still ours; a group's member may have been replaced unawares."""
        return True

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Everything is ours at once: there is no one to share it with."""
        count = self.app.partitions
        tps = {TP(topic, number) for topic in topics for number in range(count)}
        self.add_future(self._assign_everything(tps))

    async def _assign_everything(self, tps: set[TP]) -> None:
        self.app.on_rebalance_start()
        self.app.consumer_generation_id += 1
        self._tps = tps
        await self.on_partitions_assigned(tps, self.app.consumer_generation_id)
        self.app.on_rebalance_end()

    async def take_over(self, assigned: Iterable[TP], generation: int) -> None:
        """Faust has set its agents to this assignment: serve it."""
        by_topic = {spec.topic: name for name, spec in self.app.owner.specs.items()}
        pairs = [(by_topic[tp.topic], tp.partition) for tp in assigned if tp.topic in by_topic]
        await self.app.owner.take_over(pairs, self.is_current(generation))

    def is_current(self, generation: int) -> IsCurrent:
        return lambda: generation == self.app.consumer_generation_id and not self.should_stop

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self.give_up()
        await super().on_partitions_revoked(revoked)

    async def give_up(self) -> None:
        """Finish, checkpoint and let go of every partition; after a crash no agent answers any more."""
        await self.app.owner.give_up(0.0 if self.app.crashed else GIVE_UP_SECONDS)

    async def on_stop(self) -> None:
        await self.give_up()

    async def deliver(self, batch: PartBatch) -> None:
        """One event for the whole batch, by way of Faust's conductor into the stream of its agent."""
        last = batch.last
        tp = TP(last.topic, last.partition)
        value: Any = batch  # Faust expects bytes here; `BatchSchema` lets it pass
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

    # ---- what Faust's own fetching and committing would need

    def track_message(self, message: Any) -> None:
        """Batches are waited for by their parts, not by Faust."""
        self._on_message_in(message.tp, message.offset, message)

    async def on_task_error(self, exc: BaseException) -> None:
        """The stream has told the part already."""

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
        """Topics are created by the log, with their real settings, before anything subscribes."""


class Producer(base.Producer):
    """`topic.send` of Faust on the log: durable when it returns. Agents use their batch instead."""

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
        """Topics are created by the log."""

    def supports_headers(self) -> bool:
        return True


class GroupTransport(base.Transport):
    """Base of both drivers: `log`, `backend`, and a `Consumer` that knows how partitions are assigned."""

    Consumer = Membership
    Producer = Producer
    app: Any
    default_port = 0
    driver_version = "ceremony"

    @property
    @abstractmethod
    def log(self) -> Log:
        """The log beside the agents; started and stopped by the app."""

    @property
    def shared(self) -> TailedLog | None:
        """The log where several workers share it; None where there is one worker only."""
        return None

    @abstractmethod
    def backend(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> Backend:
        """What the part of one partition stands on."""

    async def close(self) -> None:
        """Called when the app stops, after the last part was given up and before the log stops."""
