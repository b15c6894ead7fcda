"""Membership of a worker in the consumer group of Kafka, which assigns the partitions."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from faust.types import TP

from ports.log import LogFailed, LogUnavailable
from streams.transport.faust import membership
from streams.transport.kafka.session import GroupSession
from streams.transport.partition.assignment import IsCurrent

# A static member that loses its membership so many times within these seconds shares its worker id with another.
TWIN_SECONDS, TWIN_LOSSES = 30.0, 3


class RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes the group's rebalances on to Faust."""

    def __init__(self, member: GroupMember) -> None:
        self._member = member

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._member.app.on_rebalance_start()
        self._member.notice_lost_membership()
        await self._member.on_partitions_revoked({TP(*tp) for tp in revoked})

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> Awaitable[None]:
        tps = set(assigned)
        self._member.silence(tps)  # before any other task runs: the fetcher must not look up positions
        return self._member.assigned(tps)


class GroupMember(membership.MemberConsumer):
    """A member of the consumer group. It never polls: the parts read their partitions with a reader of their own."""

    _group: AIOKafkaConsumer | None = None
    _session: GroupSession | None = None
    _lost: tuple[float, ...] = ()

    async def on_start(self) -> None:
        await self.app.driver.open()
        conf = self.app.conf
        self._group = AIOKafkaConsumer(
            bootstrap_servers=self.app.driver.servers,
            group_id=conf.id,
            group_instance_id=self.app.worker_id,
            client_id=conf.broker_client_id,
            partition_assignment_strategy=[self.app.assignor],
            enable_auto_commit=False,
            auto_offset_reset="none",
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            retry_backoff_ms=50,
        )
        await self._group.start()
        self._session = GroupSession(self._group, self.app.clock, conf.broker_session_timeout)
        await super().on_start()

    async def subscribe(self, topics: Iterable[str]) -> None:
        self.group.subscribe(list(topics), listener=RebalanceListener(self))

    @property
    def fresh(self) -> bool:
        return self._session is not None and self._session.fresh

    @property
    def group(self) -> AIOKafkaConsumer:
        if self._group is None:
            raise LogUnavailable("log_unavailable", "not a member of the group")
        return self._group

    def notice_lost_membership(self) -> None:
        """End the worker if it loses its static membership repeatedly: then another worker has the same id."""
        if self.app.worker_id is None or self.group._coordinator.generation >= 0:
            return
        now = self.app.clock.monotonic()
        self._lost = (*[then for then in self._lost if now - then < TWIN_SECONDS], now)
        if len(self._lost) >= TWIN_LOSSES:
            self.app.fail(
                LogFailed(
                    "worker_id_taken",
                    f"another worker of group {self.app.conf.id} also has the worker id {self.app.worker_id!r}",
                    remedy="give each its own",
                )
            )

    def silence(self, tps: Iterable[TopicPartition]) -> None:
        for tp in tps:
            self.group.seek(tp, 0)
            self.group.pause(tp)

    async def assigned(self, tps: set[TopicPartition]) -> None:
        self.app.consumer_generation_id = self.group._coordinator.generation
        self._tps = {TP(*tp) for tp in tps}
        if self._session is not None:
            self._session.joined()
        try:
            await self.on_partitions_assigned(set(self._tps), self.app.consumer_generation_id)
        finally:
            self.app.on_rebalance_end()

    def is_current(self, generation: int) -> IsCurrent:
        """Return a check that fails as soon as the coordinator removes this member, before the rebalance is known."""

        def is_current() -> bool:
            return (
                self._group is not None
                and generation == self.app.consumer_generation_id == self._group._coordinator.generation
                and not self.should_stop
            )

        return is_current

    async def commit_offsets(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets of partitions that are still owned. Raises KafkaError."""
        ours = self.group.assignment()
        mine = {tp: offset for tp, offset in offsets.items() if tp in ours}
        if mine:
            await self.group.commit(mine)

    async def on_stop(self) -> None:
        await super().on_stop()
        group, self._group = self._group, None
        if group is not None:
            await group.stop()  # without a worker id it leaves the group at once
