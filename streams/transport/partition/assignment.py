"""The partitions assigned to this worker: taken over, served, and given up before they move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ports.clock import Clock
from ports.errors import CeremonyError
from ports.log import AgentSpec, Fenced, LogFailed, PartitionView, StateLost
from streams.transport.partition.backend import Backend
from streams.transport.partition.checkpoints import Limits
from streams.transport.partition.dead_letters import DeadLetterTopic
from streams.transport.partition.part import Deliver, Part
from streams.transport.partition.positions import PartitionNotServed
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import Stores

logger = logging.getLogger(__name__)

# Returns whether an assignment is still the present one.
IsCurrent = Callable[[], bool]

# Shortest interval of the checkpoints of a partition.
SHORTEST_INTERVAL_SECONDS = 0.5
# Each owned partition adds this to the interval: a transaction costs the broker some milliseconds.
INTERVAL_PER_PARTITION_SECONDS = 0.040
# Rows and effects of all partitions since their last checkpoints; above it they checkpoint early.
UNSAVED_BYTES = 16 * 1024 * 1024
# Smallest share of one partition; less is not worth a transaction.
LEAST_UNSAVED_BYTES = 512 * 1024
# Pause before a failed partition is taken again; gives a fenced worker time to learn of a rebalance.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0


class Superseded(CeremonyError):
    """The group's generation changed while a partition was being taken: it has another owner now."""

    def __init__(self) -> None:
        super().__init__("superseded", "the partition has another owner now")


class BackendFactory(Protocol):
    def __call__(self, spec: AgentSpec, number: int, is_current: IsCurrent, /) -> Backend:
        """Return a new backend for one partition; its `take` raises Superseded when `is_current` turns false."""


class PartitionAssignment:
    """Takes, serves and gives up parts, for one assignment at a time. `give_up` ends it, and may be called twice."""

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
        self._parts: dict[tuple[str, int], Part] = {}
        self._serving: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._assigned: set[tuple[str, int]] = set()
        self._epoch = 0
        self._lock = asyncio.Lock()

    # ---- state

    @property
    def parts(self) -> Sequence[Part]:
        """Parts served now."""
        return list(self._parts.values())

    def views(self, agent: str) -> Mapping[int, PartitionView]:
        """Partitions of an agent that are served here, by number."""
        return {number: part for (name, number), part in self._parts.items() if name == agent}

    @property
    def assigned(self) -> frozenset[tuple[str, int]]:
        """(agent, partition) pairs assigned to this worker, served or not."""
        return frozenset(self._assigned)

    @property
    def settled(self) -> bool:
        """True when every assigned partition is served or in `unserved`."""
        return all(key in self._parts or key[1] in self.unserved for key in self._assigned)

    def interval(self) -> float:
        """Return the seconds between checkpoints of a partition."""
        stateful = sum(1 for part in self._parts.values() if part.stateful)
        return max(SHORTEST_INTERVAL_SECONDS, INTERVAL_PER_PARTITION_SECONDS * stateful)

    def _share(self) -> Limits:
        """Return one partition's share of the unsaved bytes that a worker may hold in memory."""
        stateful = sum(1 for name, _ in self._assigned if self.specs[name].tables)
        share = max(LEAST_UNSAVED_BYTES, UNSAVED_BYTES // max(1, stateful))
        return replace(self._limits, bytes=min(self._limits.bytes, share))

    # ---- assignments

    async def take_over(self, assigned: Iterable[tuple[str, int]], is_current: IsCurrent) -> None:
        """Begin to serve these (agent, partition) pairs and return at once; `settled` turns true when it is done."""
        async with self._lock:
            await self._give_up(0.0)
            self.unserved.clear()
            epoch = self._epoch
            self._assigned = set(assigned)

            def current() -> bool:
                return epoch == self._epoch and is_current()

            for name, number in sorted(self._assigned):
                serving = self._clock.spawn(
                    self._serve(self.specs[name], number, current), name=f"{name}[{number}] is served"
                )
                self._serving[name, number] = serving

    async def give_up(self, seconds: float) -> None:
        """Finish the batches in hand within `seconds`, checkpoint, and give everything up. Also ends a take-over."""
        async with self._lock:
            await self._give_up(seconds)

    async def _give_up(self, seconds: float) -> None:
        self._epoch += 1
        self._assigned = set()
        serving, self._serving = self._serving, {}
        if not serving:
            return
        for key, task in serving.items():
            part = self._parts.get(key)
            if part is None:
                task.cancel()  # recovering, or pausing between attempts
            else:
                part.stop()
        late = await self._wait(set(serving.values()), seconds)
        for key, task in serving.items():
            if task in late and (part := self._parts.get(key)) is not None:
                logger.warning("%r: its agent did not finish the batch in hand within %.0f s", part, seconds)
                part.abort()
        for task in await self._wait(late, 15.0):
            logger.error("%s did not end; dropped", task.get_name())
            task.cancel()

    async def _wait(self, tasks: set[asyncio.Task[None]], seconds: float) -> set[asyncio.Task[None]]:
        """Wait for tasks; return those that are not done after `seconds`."""
        pending = {task for task in tasks if not task.done()}
        if pending:
            try:
                async with self._clock.timeout(seconds):
                    await asyncio.wait(pending)
            except TimeoutError:
                pass
        return {task for task in pending if not task.done()}

    # ---- one partition

    async def _serve(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> None:
        """Take and serve one partition while it is assigned; take it again after a fence or a failure."""
        pause = FIRST_PAUSE_SECONDS
        while is_current():
            try:
                await self._serve_once(spec, number, is_current)
                return
            except Superseded:
                return
            except PartitionNotServed as reason:
                logger.error("%s[%d] is not served: %s", spec.name, number, reason)
                self.unserved.setdefault(number, (reason.code, f"{spec.name}: {reason.text}"))
                return
            except Fenced:
                logger.warning("%s[%d] was fenced; it is dropped", spec.name, number)
            except StateLost as loss:
                logger.warning("%s[%d] is taken anew from its changelog: %s", spec.name, number, loss)
            except LogFailed as failure:
                logger.error("%s[%d]: %s", spec.name, number, failure)
                self._fail(failure)
                return
            except Exception as failure:
                logger.error("%s[%d] failed and is given up: %s", spec.name, number, failure, exc_info=failure)
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _serve_once(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> None:
        part = Part(
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
        key = (spec.name, number)
        try:
            began = self._clock.monotonic()
            await part.take()
            if not is_current():
                raise Superseded
            self._parts[key] = part
            if spec.on_recovered is not None:
                rows = sum(len(part.rows(table)) for table in part.table_names)
                spec.on_recovered(rows, self._clock.monotonic() - began)
            await part.run()
        finally:
            if self._parts.get(key) is part:
                del self._parts[key]
            await part.close()
