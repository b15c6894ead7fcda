"""Reads for clients and operators: rows, watches, history, dead letters and diagnosis."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import replace

import structlog

from ports.clock import Clock
from ports.errors import CeremonyError
from ports.history import HistoryCopy
from ports.log import Log, LogUnavailable, PartitionView, Record
from ports.redaction import Redactor
from streams.api import (
    DeadLetterEntry,
    Diagnosis,
    Found,
    History,
    HistoryPlace,
    Matches,
    PartitionDiffers,
    Query,
    Unavailable,
)
from streams.dead_letters import letter_of
from streams.doctor import Doctor
from streams.history import HistoryReader, Life
from streams.joined_history import JoinedHistory
from streams.letter_budget import LetterBudget
from streams.letter_index import LETTERS_PER_PIECE, LetterIndex
from streams.log_clock import LogClock
from streams.matches import merged
from streams.partitions import LONGEST_ID, MOVING, Partitions, PinnedRow
from streams.row_indexes import RowIndexes
from streams.topics import CEREMONIES, DEADLETTERS, DEFINITIONS, EVENTS, prefixed
from streams.turns import Turns
from streams.waiters import FOLD_SECONDS, FoldedRows, Watchers
from tables.definition import Definition
from tables.definitions.loader import load_pinned
from tables.diagnosis import waiting_for
from tables.instance import TERMINAL, Instance
from tables.kinds import Kinds

log = structlog.get_logger(__name__)

# How long a history waits for the events of the commands folded last.
SENT_SECONDS = 1.0


class Reads:
    """Reads the partitions served here; implements `ReadApi`."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        log_clock: LogClock,
        *,
        partitions: Partitions,
        kinds: Kinds,
        prefix: str,
        known_end: Callable[[int], int],
        turns: Turns,
        redactor: Redactor,
        indexes: RowIndexes,
        history_copy: HistoryCopy | None = None,
    ) -> None:
        """`known_end` gives the log end of a partition as far as this worker knows it; `redactor` learns prompts."""
        self._redactor = redactor
        self._log = log
        self._clock = clock
        self._log_clock = log_clock
        self._partitions = partitions
        self._known_end = known_end
        self._kinds = kinds
        self._turns = turns
        self._indexes = indexes
        self._watchers = Watchers()
        self.losses = 0
        self.letter_budget = LetterBudget(clock)
        """For everything of this worker that writes dead letters."""
        self.letters = LetterIndex(log, turns, prefixed(prefix, DEADLETTERS))
        self._history = JoinedHistory(HistoryReader(log, clock, prefixed(prefix, EVENTS), turns), history_copy, clock)

    # -- changes of the tables

    def changed(self, rows: FoldedRows) -> None:
        self._watchers.changed(rows)

    def lost(self) -> None:
        """Ownership changed: every watcher looks again."""
        self.losses += 1
        self._watchers.lost()

    # -- rows

    def get(self, instance_id: str) -> Instance | None:
        if len(instance_id) > LONGEST_ID:
            return None
        row: Instance | None = self._partitions.of(instance_id).rows(CEREMONIES).get(instance_id.encode())
        return row

    async def find(self, instance_id: str) -> Found | None:
        if len(instance_id) > LONGEST_ID:
            return None
        if self.get(instance_id) is None:
            view = self._partitions.of(instance_id)
            await self._folded(view, self._known_end(view.number))  # a start may be accepted and not folded yet
        row = self.get(instance_id)
        if row is None:
            return None
        view = self._partitions.of(instance_id)
        position = view.position
        await view.committed(position)
        return Found(row, (view.number, position))

    async def committed(self) -> None:
        for view in self._partitions.served():
            await view.committed(view.position)

    def position_of(self, instance_id: str) -> tuple[int, int]:
        view = self._partitions.of(instance_id)
        return view.number, view.position

    async def reached(self, instance_id: str, partition: int, offset: int) -> None:
        view = self._partitions.of(instance_id[:LONGEST_ID])
        if view.number != partition:
            raise PartitionDiffers(partition, view.number)
        await self._folded(view, offset)

    async def _folded(self, view: PartitionView, offset: int) -> None:
        """Return once everything before `offset` is folded. Raises Unavailable."""
        if view.position >= offset:
            return
        try:
            async with self._clock.timeout(FOLD_SECONDS):
                await view.folded(offset - 1)
        except TimeoutError:
            raise Unavailable(f"partition {view.number} is not folded up to {offset} yet") from None
        except LogUnavailable:
            raise Unavailable(f"partition {view.number} is not served: moving: {MOVING}") from None

    async def search(self, query: Query, most: int, partitions: Collection[int] | None = None) -> Matches:
        numbers = range(self._partitions.count) if partitions is None else partitions
        views = [self._partitions.view(number) for number in numbers]
        found = [await self._indexes.search(number, query, most) for number in numbers]
        if views != [self._partitions.view(number) for number in numbers]:  # one was lost while its rows were read
            raise Unavailable(f"a partition was taken over meanwhile: moving: {MOVING}")
        return await self._turns.run(merged(found, most))

    async def watch(self, instance_id: str) -> AsyncGenerator[Found]:
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
                    view = self._partitions.of(instance_id)
                    position = view.position
                    await view.committed(position)
                    yield Found(row, (view.number, position))
                if row.status in TERMINAL:
                    return
                await event.wait()
        finally:
            self._watchers.remove(key, event)

    # -- definitions

    def definition_of(self, instance: Instance) -> Definition | None:
        return self.pinned(self._partitions.of(instance.instance_id), instance)

    def pinned(self, view: PartitionView, instance: PinnedRow) -> Definition | None:
        """Return the definition that a row of this partition is pinned to; None when it cannot be read any more."""
        text = view.rows(DEFINITIONS).get(instance.definition_hash.encode())
        if text is None:
            return None
        try:
            definition = load_pinned(text, instance.definition_hash, self._kinds)
        except CeremonyError as error:  # a rule newer than the ceremony refuses it; the row can still be read
            log.error("pinned_definition_invalid", hash=instance.definition_hash, problems=error.message)
            return None
        self._redactor.learn(definition.prompts)
        return definition

    def prompts_of(self, instance_id: str) -> tuple[str, ...]:
        """Return the prompts of the definition that a ceremony is pinned to; none where there is no such ceremony."""
        row = self.get(instance_id)
        definition = None if row is None else self.definition_of(row)
        return () if definition is None else definition.prompts

    def waiting_for(self, instance: Instance) -> Sequence[str]:
        definition = self.definition_of(instance)
        return [] if definition is None else waiting_for(instance, definition)

    # -- reads of operators

    async def dead_letters(self, limit: int, offset: int, topic: str = "") -> tuple[Sequence[DeadLetterEntry], int]:
        try:
            await self.letters.refresh()
            page = await self.letters.records(await self.letters.newest(limit, offset, topic))
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error
        return await self._turns.run(_shown(page)), self.letters.total(topic)

    async def dead_letter_counts(self) -> tuple[Mapping[str, int], int]:
        try:
            await self.letters.refresh()
        except LogUnavailable as error:
            raise Unavailable("the log cannot be reached") from error
        return self.letters.codes, self.letters.total()

    async def history(self, instance_id: str, limit: int, place: HistoryPlace | None = None) -> History | None:
        found = await self.find(instance_id)
        if found is None:
            return None
        view = self._partitions.appendable(instance_id)
        with contextlib.suppress(TimeoutError):  # a slow or absent log: the events in it are shown
            async with self._clock.timeout(SENT_SECONDS):
                await view.sent()
        life = Life(found.row.created_at, found.row.updated_at)
        if place is None:
            return await self._history.newest(view.number, instance_id, limit, life)
        return await self._history.page(view.number, instance_id, limit, life, place)

    async def diagnose(self, instance_id: str = "") -> Diagnosis:
        doctor = Doctor(self._clock, self.pinned, self._log_clock.now(), self._turns)
        states = self._partitions.states()
        if not instance_id:
            diagnosis = await doctor.all(self._partitions.served(), states)
            await self.committed()
            incomplete = "; ".join(filter(None, (diagnosis.incomplete, self.letter_budget.shortage)))
            return replace(
                diagnosis,
                incomplete=incomplete,
                log_warnings=self._partitions.log_warnings(),
                clock_ahead=self._log_clock.ahead_lately(),
            )
        one = await self.find(instance_id)
        found = [] if one is None else [doctor.one(self._partitions.appendable(instance_id), one.row)]
        statuses = Counter(str(diagnosed.row.status) for diagnosed in found)
        verdicts = Counter(str(diagnosed.verdict) for diagnosed in found)
        return Diagnosis(self._log_clock.now(), found, verdicts, statuses, states)


def _shown(records: Sequence[Record]) -> Generator[None, None, list[DeadLetterEntry]]:
    entries = []
    for record in records:
        entries.append(_dead_letter(record))
        if len(entries) % LETTERS_PER_PIECE == 0:
            yield
    return entries


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
