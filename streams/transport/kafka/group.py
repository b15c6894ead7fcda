"""Membership of a worker in the consumer group of Kafka, which assigns the partitions.

A member joins again without giving anything up: until it has joined, the group gives its partitions to nobody, and
after that only those that it has given up (`streams/transport/faust/assignor.py`). A member that the group has
replaced gives up everything, and claims nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Collection, Iterable, Mapping

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from faust.types import TP

from ports.log import LogFailed, LogUnavailable
from streams.transport.faust import membership
from streams.transport.kafka.session import GroupSession
from streams.transport.partition.ownership import IsCurrent

# Its lines are news at INFO, unlike others of the transport.
log = structlog.get_logger("streams.membership")

# A static member that loses its membership so many times within these seconds shares its worker id with another.
TWIN_SECONDS, TWIN_LOSSES = 30.0, 3
# A rebalance waits so long for partitions that are being given up. Those that take longer are claimed once more.
LEAVE_SECONDS = 3.0


class RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes the group's rebalances on to Faust."""

    def __init__(self, member: GroupMember) -> None:
        self._member = member

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._member.notice_lost_membership()
        await self._member.joins_again({TP(*tp) for tp in revoked})

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> Awaitable[None]:
        tps = set(assigned)
        self._member.silence(tps)  # before any other task runs: the fetcher must not look up positions
        return self._member.assigned(tps)


class GroupMember(membership.MemberConsumer):
    """A member of the consumer group. It never polls: the parts read their partitions with a reader of their own."""

    _group: AIOKafkaConsumer | None = None
    _session: GroupSession | None = None
    _lost: tuple[float, ...] = ()
    _keeps = False
    """True when nobody else can have had our partitions since the last assignment."""
    joining = False
    """True from a request to join again until its answer. The broker answers nothing else of the group meanwhile."""
    _member_id = ""
    _why = "joined"

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
        return self.is_member and self._session is not None and self._session.fresh

    @property
    def is_member(self) -> bool:
        """False before the first join, and once this member knows that the group has replaced it."""
        return self._group is not None and self._group._coordinator.generation >= 0

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

    async def joins_again(self, tps: set[TP]) -> None:
        """Serve on until the new assignment is known; give everything up if the group has replaced this member."""
        if self.is_member:
            with contextlib.suppress(TimeoutError):
                async with self.app.clock.timeout(LEAVE_SECONDS):
                    await self.app.owner.left()
                    await self.app.driver.commit_now()
        if self.is_member:
            self._why = "rebalance"
            self.joining = True
            return
        self._replaced()
        await self.on_partitions_revoked(tps)

    def claims(self) -> Mapping[str, list[int]]:
        """Return the partitions that nobody else may have, by topic, for a request to join.

        None after the group has replaced this member, perhaps between two requests: it gives up all that it has.
        """
        if not self.is_member:
            self._replaced()
            return {}
        claims: dict[str, list[int]] = {}
        for name, number in sorted(self.app.owner.claimed):
            claims.setdefault(self.app.owner.specs[name].topic, []).append(number)
        return claims

    def _replaced(self) -> None:
        app = self.app
        self._report(gave_up=self._tps, why="replaced")
        self._tps = set()
        app.driver.begin_anew()
        if not app.rebalancing:
            app.on_rebalance_start()
        app.owner.let_go(0.0 if app.crashed else membership.GIVE_UP_SECONDS)

    async def assigned(self, tps: set[TopicPartition]) -> None:
        """Take over an assignment; parts are kept if it is the next one, so that none in between went to others."""
        app, before, coordinator = self.app, self._tps, self.group._coordinator
        generation, member_id = coordinator.generation, coordinator.member_id
        self._keeps = member_id == self._member_id and generation - app.consumer_generation_id in (0, 1)
        if not self._keeps:
            app.driver.begin_anew()
        self.joining = False
        self._member_id, self._tps = member_id, {TP(*tp) for tp in tps}
        app.consumer_generation_id = generation
        if not app.rebalancing:
            app.on_rebalance_start()
        try:
            # Faust delivers the batches in hand of partitions that are being given up, too.
            await self.on_partitions_assigned(self._tps | before, generation)
        finally:
            app.on_rebalance_end()
            if app.assignor.withheld:
                app.assignor.withheld = False
                coordinator.request_rejoin()
        self._report(took=self._tps - before, kept=self._tps & before, gave_up=before - self._tps, why=self._why)

    def take_over(self, assigned: Iterable[TP], generation: int) -> None:
        self.app.owner.take_over(
            self.pairs_of(self._tps),
            self.is_current(generation),
            keep=self._keeps,
            leave_seconds=membership.GIVE_UP_SECONDS,
        )

    def _report(
        self, why: str, took: Collection[TP] = (), kept: Collection[TP] = (), gave_up: Collection[TP] = ()
    ) -> None:
        """Log the partitions that this worker takes and gives up."""
        if took or gave_up:
            numbers = {name: _numbers(tps) for name, tps in (("took", took), ("kept", kept), ("gave_up", gave_up))}
            log.info("partitions_moved", why=why, generation=self.app.consumer_generation_id, **numbers)

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
        self._report(gave_up=self._tps, why="stopping")
        await super().on_stop()
        group, self._group = self._group, None
        if group is not None:
            await group.stop()  # without a worker id it leaves the group at once


def _numbers(tps: Collection[TP]) -> str:
    return ",".join(map(str, sorted({tp.partition for tp in tps}))) or "none"
