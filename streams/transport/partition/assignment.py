"""The partitions assigned to this worker: taken over, served, and given up before they move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ports.clock import Clock
from ports.log import AgentSpec, PartitionView
from streams.transport.partition.backend import Backend
from streams.transport.partition.checkpoints import Limits
from streams.transport.partition.dead_letters import DeadLetterTopic
from streams.transport.partition.ownership import IsCurrent, Ownership
from streams.transport.partition.part import Deliver, Part
from streams.transport.partition.positions import PartitionNotServed
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import Stores

# Shortest interval of the checkpoints of a partition.
SHORTEST_INTERVAL_SECONDS = 0.5
# Each owned partition adds this to the interval: a transaction costs the broker some milliseconds.
INTERVAL_PER_PARTITION_SECONDS = 0.040
# Rows and effects of all partitions since their last checkpoints; above it they checkpoint early.
UNSAVED_BYTES = 16 * 1024 * 1024
# Smallest share of one partition; less is not worth a transaction.
LEAST_UNSAVED_BYTES = 512 * 1024

# An agent and a partition of its topic.
Pair = tuple[str, int]


class BackendFactory(Protocol):
    def __call__(self, spec: AgentSpec, number: int, is_current: IsCurrent, /) -> Backend:
        """Return a new backend for one partition; its `take` raises Superseded when `is_current` turns false."""


class PartitionAssignment:
    """Takes, serves and gives up parts, for one assignment at a time. `give_up` ends it, and may be called twice.

    Parts that a new assignment keeps are served on; those that it lacks are given up in the background, and `left`
    returns once they are free.
    """

    def __init__(
        self,
        specs: Sequence[AgentSpec],
        *,
        partitions: int,
        clock: Clock,
        new_backend: BackendFactory,
        deliver: Deliver,
        dead_letters: DeadLetterTopic,
        fail: Callable[[BaseException], None],
        cache: RowCache,
        stores: Stores,
        limits: Limits | None = None,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.unserved: dict[int, tuple[str, str]] = {}
        self._partitions = partitions
        self._clock = clock
        self._new_backend = new_backend
        self._deliver = deliver
        self._dead_letters = dead_letters
        self._fail = fail
        self._limits = limits or Limits()
        self._cache = cache
        self._stores = stores
        self._owned: dict[Pair, Ownership] = {}
        self._leaving: dict[Pair, tuple[Ownership, asyncio.Task[None]]] = {}
        """Ownerships that are being given up, each with the task that does it."""
        self._is_current: IsCurrent = lambda: False

    # ---- state

    @property
    def parts(self) -> Sequence[Part]:
        """Parts served now, also while they are being given up."""
        return list(self._served().values())

    def _served(self) -> dict[Pair, Part]:
        leaving = {pair: ownership for pair, (ownership, _) in self._leaving.items()}
        both = (*leaving.items(), *self._owned.items())  # an ownership that has a part comes after the one that left
        return {pair: ownership.part for pair, ownership in both if ownership.part is not None}

    def views(self, agent: str) -> Mapping[int, PartitionView]:
        """Partitions of an agent that are served here, by number."""
        return {number: part for (name, number), part in self._served().items() if name == agent}

    @property
    def assigned(self) -> frozenset[Pair]:
        """(agent, partition) pairs assigned to this worker, served or not."""
        return frozenset(self._owned)

    @property
    def claimed(self) -> frozenset[Pair]:
        """Pairs that nobody else may have yet: the assigned ones, and those that are not given up completely."""
        return frozenset((*self._owned, *self._leaving))

    @property
    def settled(self) -> bool:
        """True when every assigned partition is served or in `unserved`."""
        return all(
            ownership.part is not None or number in self.unserved for (_, number), ownership in self._owned.items()
        )

    def interval(self) -> float:
        """Return the seconds between checkpoints of a partition."""
        stateful = sum(1 for part in self.parts if part.stateful)
        return max(SHORTEST_INTERVAL_SECONDS, INTERVAL_PER_PARTITION_SECONDS * stateful)

    def _share(self) -> Limits:
        """Return one partition's share of the unsaved bytes that a worker may hold in memory."""
        stateful = sum(1 for name, _ in self._owned if self.specs[name].tables)
        share = max(LEAST_UNSAVED_BYTES, UNSAVED_BYTES // max(1, stateful))
        return replace(self._limits, bytes=min(self._limits.bytes, share))

    # ---- assignments

    def take_over(
        self,
        assigned: Iterable[Pair],
        is_current: IsCurrent,
        *,
        keep: bool = False,
        leave_seconds: float = 0.0,
    ) -> None:
        """Begin to serve these (agent, partition) pairs and return at once; `settled` turns true when it is done.

        `keep`: nobody else can have had the pairs that were assigned before, so their parts are served on. Others
        finish the batches in hand within `leave_seconds`. An assignment that is not current any more changes nothing.
        """
        if not is_current():
            return
        wanted = set(assigned)
        staying = {pair for pair in wanted if keep and pair in self._owned and not self._owned[pair].ended}
        self._is_current = is_current
        self.unserved.clear()
        for pair in self._owned.keys() - staying:
            self._leave(pair, leave_seconds if keep else 0.0)
        for pair in sorted(wanted - staying):
            self._own(pair)
        for part in self.parts:
            part.limit(self._share())

    def _own(self, pair: Pair) -> None:
        name, number = pair
        former, _ = self._leaving.get(pair, (None, None))

        def not_served(reason: PartitionNotServed) -> None:
            self.unserved.setdefault(number, (reason.code, f"{name}: {reason.text}"))

        self._owned[pair] = Ownership(
            f"{name}[{number}]",
            lambda is_current: self._new_part(self.specs[name], number, is_current),
            clock=self._clock,
            is_current=lambda: self._is_current(),  # noqa: PLW0108 - of the assignment at that time
            not_served=not_served,
            fail=self._fail,
            former=former,
        )

    def _leave(self, pair: Pair, seconds: float) -> None:
        """Give a pair up in the background."""
        ownership = self._owned.pop(pair)
        leaving = self._clock.spawn(ownership.give_up(seconds), name=f"{pair[0]}[{pair[1]}] is given up")
        self._leaving[pair] = ownership, leaving
        leaving.add_done_callback(lambda _: self._left_one(pair, ownership))

    def _left_one(self, pair: Pair, ownership: Ownership) -> None:
        if pair in self._leaving and self._leaving[pair][0] is ownership:
            del self._leaving[pair]

    async def left(self) -> None:
        """Return once everything that was given up is free."""
        while self._leaving:
            await asyncio.wait({leaving for _, leaving in self._leaving.values()})

    def let_go(self, seconds: float) -> None:
        """Begin to give everything up; the batches in hand are finished within `seconds`. Also ends a take-over."""
        self._is_current = lambda: False
        for pair in list(self._owned):
            self._leave(pair, seconds)

    async def give_up(self, seconds: float) -> None:
        """Finish the batches in hand within `seconds`, checkpoint, and return once everything is given up."""
        self.let_go(seconds)
        await self.left()

    # ---- one partition

    def _new_part(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> Part:
        return Part(
            spec,
            number,
            partitions=self._partitions,
            backend=self._new_backend(spec, number, is_current),
            clock=self._clock,
            deliver=self._deliver,
            dead_letters=self._dead_letters,
            interval=self.interval,
            limits=self._share(),
            cache=self._cache,
            stores=self._stores,
        )
