"""Examines all ceremonies of this worker for `ceremony doctor`: a verdict for each, details of the gravest."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from ports.clock import Clock
from ports.log import PartitionView
from streams.api import Diagnosis, PartitionState
from streams.partitions import DefinitionLookup
from streams.topics import CEREMONIES
from streams.turns import Turns
from tables.diagnosis import CeremonyDiagnosis, CeremonyVerdict, diagnose, since_when, verdict_of
from tables.instance import Instance

# Time limit of one examination of all ceremonies.
LOOK_SECONDS = 5.0
# Rows examined before other tasks get the event loop.
ROWS_PER_TURN = 100
# Ceremonies of each verdict that are shown in detail.
DETAILED_PER_VERDICT = 20
WORTH = tuple(verdict for verdict in CeremonyVerdict if verdict is not CeremonyVerdict.ENDED)


class Doctor:
    """One examination; `now` is the log's clock in milliseconds, 0 while it is unknown."""

    def __init__(self, clock: Clock, definition_of: DefinitionLookup, now: int, turns: Turns) -> None:
        self._turns = turns
        self._clock = clock
        self._definition_of = definition_of
        self._now = now
        self._verdicts: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._oldest: dict[CeremonyVerdict, list[tuple[int, str, PartitionView, Instance]]] = {
            verdict: [] for verdict in WORTH
        }
        """By verdict: a heap of the oldest ceremonies, the youngest of them on top."""

    def one(self, view: PartitionView, row: Instance) -> CeremonyDiagnosis:
        """Diagnose one ceremony of this partition."""
        return diagnose(row, self._definition_of(view, row), self._now)

    async def all(self, views: Iterable[PartitionView], states: Sequence[PartitionState]) -> Diagnosis:
        """Examine all rows, until the time limit."""
        until = self._clock.monotonic() + LOOK_SECONDS
        left = 0
        for view in views:
            unseen = len(view.rows(CEREMONIES))
            rows = (row for _, row in view.scan(CEREMONIES))
            while unseen and self._clock.monotonic() <= until:
                some = list(islice(rows, ROWS_PER_TURN))
                self._look(view, some)
                # Rows may come and go meanwhile.
                unseen = max(unseen - len(some), 0) if len(some) == ROWS_PER_TURN else 0
                await self._turns.next()
            left += unseen
        incomplete = f"{left} ceremonies were not looked at: {LOOK_SECONDS:g} s were up" if left else ""
        return Diagnosis(self._now, await self._gravest(), self._verdicts, self._statuses, states, incomplete)

    def _look(self, view: PartitionView, rows: Iterable[Instance]) -> None:
        for row in rows:
            verdict = verdict_of(row, self._definition_of(view, row), self._now)
            self._verdicts[verdict] += 1
            self._statuses[row.status] += 1
            oldest = self._oldest.get(verdict)
            if oldest is None:
                continue
            item = (-since_when(row, verdict, self._now), row.instance_id, view, row)
            if len(oldest) < DETAILED_PER_VERDICT:
                heapq.heappush(oldest, item)
            elif item > oldest[0]:
                heapq.heapreplace(oldest, item)

    async def _gravest(self) -> list[CeremonyDiagnosis]:
        found = []
        for verdict in WORTH:
            for _, _, view, row in sorted(self._oldest[verdict], reverse=True):
                found.append(self.one(view, row))
                await self._turns.next()
        return found
