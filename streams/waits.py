"""The waits of one partition's ceremonies by kind: how many there are, and since when the oldest lasts.

Kept up with the rows that change, so a scrape of the metrics looks at no row, however many there are.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping

from tables.definition import Definition
from tables.instance import CeremonyStatus, Instance, Phase
from tables.open_gates import open_gate_steps, open_human_guards

# Kinds of waits, as `ceremony doctor` names them: a ceremony is paused, an attempt of a step runs, a gate is open, or a
# person has to satisfy a guard. The fifth kind, `timer`, is a timer that is overdue.
PAUSE, ATTEMPT, GATE, GUARD, TIMER = "pause", "attempt", "gate", "guard", "timer"
ROW_KINDS = (PAUSE, ATTEMPT, GATE, GUARD)
# The heap may have this many entries that are out of date, before it is built anew.
SPARE_ENTRIES = 64


class Earliest:
    """Times of keys that come and go, and the earliest of them. An entry out of date goes when it comes up.

    A key whose time is 0 (unknown) counts, and is never the earliest.
    """

    def __init__(self) -> None:
        self._times: dict[bytes, int] = {}
        self._heap: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self._times)

    def put(self, key: bytes, time: int | None) -> None:
        """Set the time of a key; None removes it."""
        if time is None:
            self._times.pop(key, None)
        elif self._times.get(key) != time:
            self._times[key] = time
            if time:
                heapq.heappush(self._heap, (time, key))
        if len(self._heap) > 2 * len(self._times) + SPARE_ENTRIES:
            self._heap = [(time, key) for key, time in self._times.items() if time]
            heapq.heapify(self._heap)

    @property
    def first(self) -> int | None:
        """The earliest known time; None while there is none."""
        heap = self._heap
        while heap and self._times.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None


class PartitionWaits:
    """The waits of one partition; `put` notes each row that changed."""

    def __init__(self) -> None:
        self.by_kind: Mapping[str, Earliest] = {kind: Earliest() for kind in ROW_KINDS}
        self.gates: Counter[str] = Counter()
        """Open gates by definition."""
        self._gates_of: dict[bytes, tuple[str, int]] = {}
        """Definition and number of open gates, by ceremony."""
        self._pairs: dict[tuple[str, int], tuple[str, int]] = {}
        """Each of these pairs once, for many ceremonies have the same."""

    def put(self, key: bytes, row: Instance, definition: Definition | None) -> None:
        """Note a live ceremony as it is now; without its definition nothing is known to be awaited."""
        since: dict[str, int] = {}
        gates = 0
        if definition is not None:
            gates = sum(1 for _ in open_gate_steps(row, definition))
            for kind, time in waits_of(row, definition):
                since[kind] = min(time, since.get(kind) or time) if time else since.get(kind, 0)
        for kind, earliest in self.by_kind.items():
            earliest.put(key, since.get(kind))
        self._count_gates(key, row.definition_name, gates)

    def remove(self, key: bytes) -> None:
        """Note that a ceremony has ended, or is gone."""
        for earliest in self.by_kind.values():
            earliest.put(key, None)
        self._count_gates(key, "", 0)

    def _count_gates(self, key: bytes, definition: str, gates: int) -> None:
        name, before = self._gates_of.pop(key, ("", 0))
        if before:
            self.gates[name] -= before
        if gates:
            self.gates[definition] += gates
            pair = definition, gates
            self._gates_of[key] = self._pairs.setdefault(pair, pair)


def waits_of(row: Instance, definition: Definition) -> Iterator[tuple[str, int]]:
    """Return the kinds of waits of a live ceremony, each with its start in milliseconds; 0 where it is unknown.

    A row does not tell since when a human guard is judged: its wait lasts from the last change of the row.
    """
    if row.status is CeremonyStatus.PAUSED:
        yield PAUSE, row.paused_at
    for state in row.steps.values():
        if state.phase is Phase.GATE:
            yield GATE, state.started_at
        elif state.phase is not Phase.NONE:
            yield ATTEMPT, state.started_at
    if next(open_human_guards(row, definition), None) is not None:
        yield GUARD, row.updated_at


def merged(partitions: list[PartitionWaits]) -> Iterator[tuple[str, int, int | None]]:
    """Return each kind with the number of ceremonies that wait so, and the time since which the oldest does."""
    for kind in ROW_KINDS:
        found = [partition.by_kind[kind] for partition in partitions]
        times = [earliest.first for earliest in found]
        yield kind, sum(map(len, found)), min((time for time in times if time is not None), default=None)
