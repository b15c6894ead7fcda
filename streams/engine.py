"""The engine as the front sees it: commands go to the log and are answered from the fold, reads come from the table."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

import structlog

from ports.clock import Clock
from ports.errors import CeremonyError
from ports.log import Batch, Header, Log, LogUnavailable, PartitionView, Position, Record
from streams.admission import Admission
from streams.answers import Answers, Folded, Watchers
from streams.api import (
    DeadLetterEntry,
    Diagnosis,
    History,
    Operation,
    Overloaded,
    PartitionDiffers,
    PartitionState,
    Reply,
    SortKey,
    Unavailable,
)
from streams.ceremony_agent import applied_rows
from streams.codecs import letter_of
from streams.doctor import Doctor
from streams.history import HistoryReader
from streams.log_clock import LogClock
from streams.metrics import Metrics
from streams.newest import newest
from streams.sweep import Sweep
from streams.timers import Timers
from streams.topics import CEREMONIES, COMMANDS, CORRELATION_ID, DEADLETTERS, DEFINITIONS, EVENTS, prefixed
from tables.commands import PutDefinition, Start, encode_command
from tables.definition import Definition
from tables.definitions.loader import load_pinned
from tables.instance import TERMINAL, Instance, Outline
from tables.kinds import Kinds
from tables.liveness import waiting_for

log = structlog.get_logger(__name__)

FOLD_SECONDS = 2.0
"""How long the front waits for the fold (specification 10.3)."""
WRITE_SECONDS = 5.0
"""How long the front waits for the log's acknowledgement."""
LONGEST_ID = 257
"""Characters of an instance id; a longer one names nothing and is not even hashed."""
SENT_SECONDS = 1.0
"""How long a history waits for the events of what was just answered."""
MOVING = "the partition of this instance is being taken over"
NOT_FRESH = "the group has not confirmed for some seconds that this worker still owns it"


class Engine:
    """Fulfils `streams.api.Engine` for the partitions this worker owns.

    `unserved` tells which partitions the driver refused to serve, each with a code and what to do; `held` which it was
    given, None while that is being settled; `fresh` is false once another worker may have them. `max_lag`: records of
    a partition that may wait to be folded before starts are refused; 0 sets no limit.
    """

    def __init__(
        self,
        *,
        log: Log,
        unserved: Callable[[], Mapping[int, tuple[str, str]]],
        clock: Clock,
        log_clock: LogClock,
        kinds: Kinds,
        prefix: str,
        partitions: int,
        metrics: Metrics,
        held: Callable[[], Collection[int] | None] | None = None,
        fresh: Callable[[], bool] = lambda: True,
        max_lag: int = 0,
    ) -> None:
        self._log = log
        self._held = held or (lambda: range(partitions))
        self._fresh = fresh
        self.on_change: Callable[[], None] = lambda: None
        """Called when what is owned here has changed."""
        self._unserved = unserved
        self.answers = Answers()
        self.admission = Admission(max_lag, clock)
        self.metrics = metrics
        self._clock = clock
        self._log_clock = log_clock
        self._kinds = kinds
        self._commands = prefixed(prefix, COMMANDS)
        self._dead_letters = prefixed(prefix, DEADLETTERS)
        self._partitions = partitions
        self._views: dict[int, PartitionView] = {}
        self._put: dict[tuple[int, str], asyncio.Lock | None] = {}
        self._watchers = Watchers()
        self._history = HistoryReader(log, clock, prefixed(prefix, EVENTS))
        self.sweep = Sweep(clock, metrics, self._pinned)
        self.timers: Timers | None = None

    # -- what the ceremony agent's partitions tell

    async def taken(self, view: PartitionView) -> None:
        """A partition was recovered; until it has folded to the end seen at take-over it is not served."""
        self._views[view.number] = view
        self.admission.taken(view.number, view.end_at_take_over)
        self.metrics.partitions.set(len(self._views))
        self.sweep.taken(view)
        if self.timers is not None:
            await self.timers.taken(view)
        self.on_change()

    def lost(self, number: int) -> None:
        self._views.pop(number, None)
        self.metrics.partitions.set(len(self._views))
        self._put = {key: lock for key, lock in self._put.items() if key[0] != number}
        self.sweep.lost(number)
        if self.timers is not None:
            self.timers.lost(number)
        self._watchers.lost()
        self.on_change()

    def mine(self) -> Collection[int]:
        """Partitions that this worker answers for, be it that they are not served."""
        return self._views.keys() | self._unserved().keys()

    def applied(self, batch: Batch) -> None:
        """A batch is visible: wake who waited for it."""
        folding = applied_rows(batch.note)
        folding.tally.add_to(self.metrics)
        self.sweep.changed(batch.partition, folding.rows)
        if self.timers is not None and folding.rows:
            self.timers.changed(batch.partition, folding.rows)
        if folding.answers:
            self.answers.settle(folding.answers)
        self._watchers.changed(folding.rows)

    # -- what the front asks

    async def start(self, definition: Definition, start: Start) -> Reply:
        partition = self._partition(start.instance_id)
        with self.admission.start(partition, self._view(partition).position):
            with self.admission.appending(partition):  # also while it waits for its definition to be put
                await self._put_definition(partition, definition)
            return await self._append(partition, start, start.correlation_id, patient=True)

    async def operate(self, command: Operation) -> Reply:
        row = self.get(command.instance_id)
        if row is None:
            return Reply("unknown_instance", f"there is no ceremony {command.instance_id[:LONGEST_ID]!r}")
        partition = self._partition(command.instance_id)
        return await self._append(partition, command, row.correlation_id, patient=False)

    def closed(self, calls: int) -> Overloaded | None:
        views = self._views
        everything = len(views) == self._partitions  # else a start may be another worker's
        positions = ((number, view.position) for number, view in views.items()) if everything else None
        return self.admission.closed(calls, positions)

    def get(self, instance_id: str) -> Instance | None:
        if len(instance_id) > LONGEST_ID:
            return None
        view = self._view(self._log.partition_of(instance_id.encode(), self._partitions))
        row: Instance | None = view.rows(CEREMONIES).get(instance_id.encode())
        return row

    def position_of(self, instance_id: str) -> tuple[int, int]:
        view = self._view(self._log.partition_of(instance_id.encode(), self._partitions))
        return view.number, view.position

    async def reached(self, instance_id: str, partition: int, offset: int) -> None:
        view = self._view(self._log.partition_of(instance_id[:LONGEST_ID].encode(), self._partitions))
        if view.number != partition:
            raise PartitionDiffers(partition, view.number)
        if view.position >= offset:
            return
        try:
            async with self._clock.timeout(FOLD_SECONDS):
                await view.folded(offset - 1)
        except TimeoutError:
            raise Unavailable(f"partition {partition} is not folded up to {offset} yet") from None
        except LogUnavailable:
            raise Unavailable(f"partition {partition} is not served: moving: {MOVING}") from None

    async def newest(
        self, wanted: Callable[[Instance | Outline], bool], most: int, partitions: Collection[int] | None = None
    ) -> tuple[int, Sequence[SortKey]]:
        numbers = range(self._partitions) if partitions is None else partitions
        views = [self._view(number) for number in numbers]
        found = await newest(views, wanted, most, self._clock)
        if views != [self._view(number) for number in numbers]:  # rows of one that was lost have gone under our eyes
            raise Unavailable(f"a partition was taken over meanwhile: moving: {MOVING}")
        return found

    def definition_of(self, instance: Instance) -> Definition | None:
        view = self._view(self._log.partition_of(instance.instance_id.encode(), self._partitions))
        return self._pinned(view, instance)

    def _pinned(self, view: PartitionView, instance: Instance) -> Definition | None:
        text = view.rows(DEFINITIONS).get(instance.definition_hash.encode())
        try:
            return None if text is None else load_pinned(text, instance.definition_hash, self._kinds)
        except CeremonyError as error:  # a rule came after the ceremony had begun: its row can still be read
            log.error("pinned_definition_invalid", hash=instance.definition_hash, problems=error.message)
            return None

    def waiting_for(self, instance: Instance) -> Sequence[str]:
        definition = self.definition_of(instance)
        return [] if definition is None else waiting_for(instance, definition)

    async def watch(self, instance_id: str) -> AsyncIterator[Instance]:
        key = instance_id.encode()
        event = self._watchers.add(key)
        seen = -1
        try:
            while True:
                event.clear()
                row = self.get(instance_id)
                if row is None:
                    return
                if row.version > seen:
                    seen = row.version
                    yield row
                if row.status in TERMINAL:
                    return
                await event.wait()
        finally:
            self._watchers.remove(key, event)

    async def dead_letters(self, limit: int, offset: int, topic: str = "") -> tuple[Sequence[DeadLetterEntry], int]:
        """Reads the whole topic: dead letters are few, and an operator asks."""
        found: list[DeadLetterEntry] = []
        try:
            for partition, (start, end) in enumerate(await self._log.ends(self._dead_letters)):
                async for records in self._log.read(self._dead_letters, partition, start, end):
                    letters = (_dead_letter(record) for record in records)
                    found += [letter for letter in letters if topic in ("", letter.topic)]
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error
        found.reverse()  # many have one time: of those, too, the last in the log comes first
        found.sort(key=lambda letter: letter.timestamp, reverse=True)
        return found[offset : offset + limit], len(found)

    async def history(self, instance_id: str, limit: int) -> History | None:
        row = self.get(instance_id)
        if row is None:
            return None
        view = self._view(self._partition(instance_id))
        with contextlib.suppress(TimeoutError):  # the log is slow or away: what it has is shown
            async with self._clock.timeout(SENT_SECONDS):
                await view.sent()
        return await self._history.read(view.number, instance_id, limit, row.created_at)

    async def diagnose(self, instance_id: str = "") -> Diagnosis:
        doctor = Doctor(self._clock, self._pinned, self._log_clock.now())
        states = [self._state(number) for number in range(self._partitions)]
        if not instance_id:
            return await doctor.all([view for number, view in self._views.items() if self._serves(number)], states)
        row = self.get(instance_id)
        found = [] if row is None else [doctor.one(self._views[self._partition(instance_id)], row)]
        statuses = Counter(str(one.row.status) for one in found)
        return Diagnosis(self._log_clock.now(), found, Counter(one.verdict for one in found), statuses, states)

    def _state(self, number: int) -> PartitionState:
        view = self._views.get(number)
        if unserved := self._unserved().get(number):
            return PartitionState(number, "not_served", *unserved)
        if view is None:
            return PartitionState(number, "elsewhere", message="another worker has it, or nobody has it yet")
        if not self._serves(number):
            left = view.end_at_take_over - view.position
            return PartitionState(number, "recovering", "moving", f"{left} commands are still to be folded")
        return PartitionState(number, "served", ceremonies=len(view.rows(CEREMONIES)))

    def owned_rows(self) -> int:
        """Rows of the partitions owned now, for the metric."""
        return sum(len(view.rows(CEREMONIES)) for view in self._views.values())

    def readiness(self) -> dict[str, str]:
        return {"log": self._log.state, "tables": self._tables_state()}

    # -- beneath

    def _tables_state(self) -> str:
        if unserved := self._unserved():
            return "; ".join(f"partition {n}: {code}: {text}" for n, (code, text) in sorted(unserved.items()))
        held = self._held()
        if held is None:
            return "the partitions of this worker are being settled"
        if not self._fresh():
            return f"membership not confirmed: {NOT_FRESH}"
        missing = [n for n in held if not self._serves(n)]
        return "ok" if not missing else f"{len(missing)} of {len(held)} partitions not recovered yet"

    def _serves(self, number: int) -> bool:
        view = self._views.get(number)
        return view is not None and view.position >= view.end_at_take_over

    def _view(self, number: int) -> PartitionView:
        if not self._serves(number):
            code, text = self._unserved().get(number, ("moving", MOVING))
            raise Unavailable(f"partition {number} is not served: {code}: {text}")
        if not self._fresh():
            raise Unavailable(f"partition {number} is not served: membership_not_confirmed: {NOT_FRESH}")
        return self._views[number]

    def _partition(self, instance_id: str) -> int:
        """The instance's partition; refused before anything is appended when it is not served, or about to move."""
        number = self._log.partition_of(instance_id.encode(), self._partitions)
        self._view(number)
        if self._held() is None:
            raise Unavailable(f"partition {number} is not served: moving: {MOVING}")
        return number

    async def _put_definition(self, partition: int, definition: Definition) -> None:
        """Once per (partition, hash) and process, and durable before the Start that needs it is appended."""
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

    async def _append(self, partition: int, command: Start | Operation, correlation_id: str, *, patient: bool) -> Reply:
        """Append and wait for the fold; `patient`: durable is enough when the fold takes longer (a Start)."""
        future = self.answers.expect(command.command_id)
        try:
            headers = ((CORRELATION_ID, correlation_id.encode()),)
            key = command.instance_id.encode()
            position = await self._write(partition, key, encode_command(command), headers)
            folded = await self._folded(future)
        finally:
            self.answers.forget(command.command_id, future)
        if folded is not None:
            return Reply(folded.code, folded.message, partition, position.offset)
        if not patient:
            again = f"ask again with request_id {command.command_id!r}"
            raise Unavailable(f"durable, but not folded within {FOLD_SECONDS:g} s; {again}")
        return Reply(partition=partition, offset=position.offset, folded=False)

    async def _folded(self, future: asyncio.Future[Folded]) -> Folded | None:
        """What the fold said, or None when it did not come to it in time."""
        try:
            async with self._clock.timeout(FOLD_SECONDS):
                return await asyncio.shield(future)
        except TimeoutError:
            return None

    async def _write(self, partition: int, key: bytes, value: bytes, headers: Sequence[Header] = ()) -> Position:
        try:
            with self.admission.appending(partition):
                async with self._clock.timeout(WRITE_SECONDS):
                    position = await self._log.append(self._commands, partition, key, value, headers)
        except (LogUnavailable, TimeoutError) as error:
            log.warning("append_failed", reason=str(error) or f"no acknowledgement within {WRITE_SECONDS:g} s")
            raise Unavailable("the log cannot be reached; repeating the call is safe") from error
        self.admission.appended(partition, position.offset)
        self._log_clock.acknowledged(position.timestamp)
        return position

    async def send(self, partition: int, key: bytes, value: bytes, headers: Sequence[Header] = ()) -> int:
        """Append a command of the timers. Raises LogUnavailable."""
        position = await self._log.append(self._commands, partition, key, value, headers)
        self.admission.appended(partition, position.offset)
        return position.timestamp


def _dead_letter(record: Record) -> DeadLetterEntry:
    letter = letter_of(record)
    return DeadLetterEntry(
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        code=letter.code,
        message=letter.message,
        timestamp=letter.timestamp,
        size=letter.size,
        key=letter.key,
    )
