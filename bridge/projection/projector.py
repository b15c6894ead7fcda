"""Keeps one read model up to date: follows its topic, and writes what records bring with the position they end at.

The store holds the position of each partition, and the position decides: a write is applied only where the store still
has the position that it continues. So a store that was emptied or restored from a backup is noticed at the next write,
or by the watch, and read again from its own position; of two projectors of one partition only one can write at a time,
and one that wakes up late writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Generic

import structlog

from bridge.leaving import CANCEL_AGAIN_SECONDS, leave
from bridge.projection import metrics
from bridge.projection.documents import portions
from bridge.projection.dual_writes import FailingWrite
from bridge.projection.model import C, Move, ReadModel
from bridge.projection.outage import StoreCalls
from bridge.projection.rebuild import Rebuild
from bridge.projection.store import Place, StoreError
from ports.clock import Clock
from ports.log import Committed, Follower, Log, LogUnavailable, Record
from streams.outages import NeighbourOutage

# Records of one batch; their bytes are bounded by what the log fetches at a time.
BATCH = 1000
WATCH_SECONDS = 2.0
STOP_SECONDS = 3.0
AGAIN_SECONDS = 0.5

log = structlog.get_logger(__name__)


class Projector(Generic[C]):
    """Projects the partitions that its group assigns to it into one store."""

    def __init__(
        self,
        log: Log,
        model: ReadModel[C],
        clock: Clock,
        *,
        partitions: int,
        outage: NeighbourOutage | None = None,
    ) -> None:
        self.on_failure: Callable[[BaseException], None] | None = None
        """Called when a task beside the batches has failed, which ends the worker."""
        self.store = model.store
        self.calls = StoreCalls(model.store, clock, outage)
        self._log = log
        self._model = model
        self._clock = clock
        self._topic = model.topic
        self._follower: Follower | None = None
        self._beside: list[asyncio.Task[None]] = []
        self._known: dict[int, str] = {}
        """Text of the store's place by partition, where the follower continues from it."""
        self._since: dict[int, int] = {}
        """`Place.since` by partition."""
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Of the writes to each partition."""
        self._turns: defaultdict[int, int] = defaultdict(int)
        """Number of times that each partition was sent to another place: what was fetched before is not written."""
        self._rebuilds: dict[int, Rebuild] = {}
        self._oldest: dict[int, int] = {}
        """Timestamp of the first record in hand, by partition."""
        self._partitions = partitions
        self._bounds: Sequence[tuple[int, int]] = ()
        """Start and end of each partition of the log, as measured last."""
        self._working: set[asyncio.Task[None]] = set()
        self._rows = metrics.ROWS.labels(model.store.name)

    @property
    def state(self) -> str:
        """For readiness: `ok`, or the last error of the store, with the records that wait for it."""
        state = self.calls.state
        return state if state == "ok" else f"{state}; {self.lag_records} records wait"

    async def start(self) -> None:
        """Begin to follow the topic. The store need not run yet; records wait in the log."""
        self._bounds = await self._log.ends(self._topic)
        self._follower = await self._log.follow(
            self._model.group, self._topic, self._handle, batch=BATCH, taken=self._taken
        )
        name = f"projector-{self.store.name}"
        self._beside = [
            self._clock.spawn(self._watch(), name=f"{name}-watch"),
            self._clock.spawn(self._measure(), name=f"{name}-measure"),
        ]
        for task in self._beside:
            task.add_done_callback(self._ended)
        metrics.LAG_RECORDS.labels(self.store.name).set_function(lambda: self.lag_records)
        metrics.LAG_SECONDS.labels(self.store.name).set_function(lambda: self.lag_seconds)

    async def stop(self) -> None:
        """Finish the writes in hand if the store answers, else leave them to the next projector."""
        await self._end_beside()
        if self._follower is not None:
            await leave([self._follower], self._working, self._clock, STOP_SECONDS)
        await self.store.close()
        await self._model.close()

    async def _end_beside(self) -> None:
        """Cancel the tasks again and again: a call of redis-py that just ends can swallow a cancellation."""
        while not all(task.done() for task in self._beside):
            for task in self._beside:
                task.cancel()
            await self._clock.sleep(CANCEL_AGAIN_SECONDS)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None and self.on_failure is not None:
            self.on_failure(failure)

    # -- batches of the topic

    async def _taken(self, committed: Committed) -> None:
        """Forget the place: at a new assignment the follower begins at the group's offset, which decides nothing."""
        self._known.pop(committed.partition, None)
        self._model.taken()

    async def _handle(self, records: Sequence[Record]) -> None:
        # In a task of its own, which `stop` can cancel while the store is away: then the batch is not committed.
        partition = records[0].partition
        self._oldest[partition] = records[0].timestamp
        work = self._project(partition, records, self._turns[partition])
        task = self._clock.spawn(work, name=f"projector-{self.store.name}-{partition}")
        self._working.add(task)
        try:
            await task
        finally:
            task.cancel()
            self._working.discard(task)
            self._oldest.pop(partition, None)

    async def _project(self, partition: int, records: Sequence[Record], turn: int) -> None:
        async with self._locks[partition]:
            if turn != self._turns[partition]:
                return  # sent elsewhere while these waited
            if partition not in self._known:
                await self._continue(partition, records)
                return  # the follower comes back with the records from the store's own place on
            self._note_lost(partition, Place.read(self._known[partition]))
            for portion in portions(records):
                if not await self._write(partition, await self._changes(portion), portion[-1].offset + 1):
                    return

    def _note_lost(self, partition: int, place: Place | None) -> None:
        """Note that the log has deleted records which the store does not have: it came too late for them."""
        start = self._bounds[partition][0]
        if self._model.loses_records and place is not None and not place.rebuild and place.next < start:
            self._since[partition] = start
            log.warning("records_lost", store=self.store.name, partition=partition, next=place.next, start=start)

    async def _changes(self, portion: Sequence[Record]) -> C:
        while True:
            try:
                return await self._model.changes(portion)
            except LogUnavailable:
                await self._clock.sleep(AGAIN_SECONDS)

    async def _write(self, partition: int, changes: C, following: int) -> bool:
        """Write, and return whether the partition goes on: False where the store had another place."""
        if (rebuild := self._rebuilds.get(partition)) is not None:
            rebuild.saw(self._model.seen(changes))
        return await self._apply(partition, changes, self._place(partition, following, rebuild))

    def _place(self, partition: int, following: int, rebuild: Rebuild | None = None) -> Place:
        since = self._since.get(partition, 0)
        return Place(following, since=since) if rebuild is None else Place(following, rebuild.id, rebuild.until, since)

    async def _apply(self, partition: int, changes: C, place: Place) -> bool:
        move = Move(partition, self._known[partition], place)
        trouble = FailingWrite(self._clock)

        async def failed(error: StoreError) -> None:
            if trouble.failed():
                await self._model.failing(changes, error, trouble.attempts)

        found = await self.calls.until_done(lambda: self._model.write(move, changes), failed)
        if found != place.text:
            log.info("place_moved", store=self.store.name, partition=partition, expected=move.expected, found=found)
            await self._continue(partition)
            return False
        self._known[partition] = found
        await self._model.written(changes)
        self._rows.inc(self._model.count(changes))
        return True

    # -- the store's own place

    async def _continue(self, partition: int, records: Sequence[Record] = ()) -> None:
        """Let the follower go on from the store's place; from the log start where the store has none.

        `records` wait for it, and are announced if it takes long.
        """
        trouble = FailingWrite(self._clock)

        async def failed(error: StoreError) -> None:
            if trouble.failed():
                for portion in portions(records):
                    await self._model.failing(await self._changes(portion), error, trouble.attempts)

        text = (await self.calls.until_done(self.store.places, failed)).get(partition, "")
        following = await self._following(partition, Place.read(text))
        self._known[partition] = text
        self._turns[partition] += 1
        self._model.moved()
        if self._follower is not None:
            self._follower.seek(partition, following)

    async def _following(self, partition: int, place: Place | None) -> int:
        """Return the offset to go on from."""
        self._rebuilds.pop(partition, None)
        self._since[partition] = 0 if place is None else place.since
        start, end = await self._measured(partition)
        if place is None:
            self._since[partition] = start if self._model.loses_records else 0
            await self.calls.until_done(self.store.open)
        elif place.rebuild:
            self._rebuilds[partition] = Rebuild(place.rebuild, end)
        elif place.next <= end:
            return place.next
        else:
            self._since[partition] = 0
            log.warning("place_beyond_log_end", store=self.store.name, partition=partition, next=place.next)
        metrics.REBUILDS.labels(self.store.name).inc()
        return 0

    async def _measured(self, partition: int) -> tuple[int, int]:
        """Return start and end of a partition of the log."""
        while True:
            try:
                self._bounds = await self._log.ends(self._topic)
                return self._bounds[partition]
            except LogUnavailable:
                await self._clock.sleep(AGAIN_SECONDS)

    # -- beside the batches

    async def _watch(self) -> None:
        """Notice a store that was emptied or restored, and the end of rebuilds, also while no row changes."""
        while True:
            with contextlib.suppress(StoreError, LogUnavailable):
                await self._look()
                if not self.lag_records:
                    await self._model.up_to_date(list(self.assigned))
            await self._clock.sleep(WATCH_SECONDS)

    async def _look(self) -> None:
        before = dict(self._known)
        stored = await self.calls.once(self.store.places)
        for partition in self._at_rest():
            known = self._known.get(partition)
            if known != before.get(partition):
                continue  # written meanwhile
            if known is None or known != stored.get(partition, ""):
                async with self._locks[partition]:
                    await self._continue(partition)
            elif partition in self._rebuilds:
                await self._end_rebuild(partition, self._rebuilds[partition])

    @property
    def assigned(self) -> Mapping[int, int]:
        """Offset of the next record to be written, by assigned partition."""
        return {} if self._follower is None else self._follower.places

    def _at_rest(self) -> Sequence[int]:
        """Return the assigned partitions that are not being written."""
        return [partition for partition in self.assigned if not self._locks[partition].locked()]

    async def _end_rebuild(self, partition: int, rebuild: Rebuild) -> None:
        """Once every row of the log was seen, remove the rows that it does not have, and note the end."""
        if self.assigned.get(partition, 0) < rebuild.until:
            return
        async with self._locks[partition]:
            if self._rebuilds.get(partition) is not rebuild:
                return
            following = (Place.read(self._known[partition]) or Place(0)).next
            if rebuild.until and not await self._remove_unseen(partition, rebuild, following):
                return
            # A log without records has lost them all: then the rows of the store are not to be lost, too.
            if await self._apply(partition, self._model.nothing(), self._place(partition, following)):
                del self._rebuilds[partition]
                log.info("partition_rebuilt", store=self.store.name, partition=partition)

    async def _remove_unseen(self, partition: int, rebuild: Rebuild, following: int) -> bool:
        """Remove rows of the partition that the log does not have; False where the store's place has moved."""
        pages = self._model.stored_ids()
        while page := await self.calls.once(lambda: anext(pages, None)):
            mine = [i for i in page if self._log.partition_of(i.encode(), self._partitions) == partition]
            gone = rebuild.unseen(mine)
            place = self._place(partition, following, rebuild)
            if gone and not await self._apply(partition, self._model.removal(gone), place):
                return False
        return True

    async def _measure(self) -> None:
        """Keep the log ends fresh, also while the store is away."""
        while True:
            with contextlib.suppress(LogUnavailable):
                self._bounds = await self._log.ends(self._topic)
            await self._clock.sleep(WATCH_SECONDS)

    @property
    def lag_records(self) -> int:
        """Records of the assigned partitions that the store does not have."""
        return sum(max(0, self._bounds[partition][1] - place) for partition, place in self.assigned.items())

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest record that is being written; 0 while none is."""
        oldest = min(self._oldest.values(), default=None)
        return 0.0 if oldest is None else max(0.0, self._clock.wall() - oldest / 1000)
