"""Finds stuck ceremonies, and counts all by status and by their waits: in the background, at bounded cost.

A stuck ceremony waits for nothing. Only changed rows are examined again, because the reasons of a row to wait change
only with the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import structlog

from ports.clock import Clock
from ports.log import PartitionView
from streams.metrics import Metrics
from streams.partitions import DefinitionLookup
from streams.topics import CEREMONIES
from streams.waits import PartitionWaits, merged
from tables.diagnosis import waiting_for
from tables.instance import TERMINAL, CeremonyStatus, Instance

log = structlog.get_logger(__name__)

EVERY_SECONDS = 2.0
# Time per turn, two per cent of a core. Remaining rows wait for the next turn; a row that changes again waits once.
BUDGET_SECONDS = 0.04
# Rows examined before other tasks get the event loop.
ROWS_PER_TURN = 100
# Stuck ceremonies named in the log per turn; `ceremony doctor` names them all.
LOGGED_PER_TURN = 10


class PartitionSweep:
    """The state of one partition: status of each row, stuck ceremonies, and rows still to be examined."""

    def __init__(self, view: PartitionView) -> None:
        self.view = view
        self.dirty: set[bytes] = set(view.rows(CEREMONIES))
        self.statuses: dict[bytes, CeremonyStatus] = {}
        self.stuck: set[bytes] = set()
        self.waits = PartitionWaits()


class StuckSweep:
    """Examines rows in `run`; the owner reports partitions and changed rows."""

    def __init__(
        self, clock: Clock, metrics: Metrics, definition_of: DefinitionLookup, now: Callable[[], int] = lambda: 0
    ) -> None:
        """`now`: the log's clock in milliseconds; 0 while it is unknown."""
        self._now = now
        self._clock = clock
        self._metrics = metrics
        self._definition_of = definition_of
        self._partitions: dict[int, PartitionSweep] = {}
        self._shown: Counter[str] = Counter()
        """Open gates by definition, as the metrics show them."""
        self.counts: Counter[CeremonyStatus] = Counter()
        """Examined rows by status."""

    def taken(self, view: PartitionView) -> None:
        self.lost(view.number)
        self._partitions[view.number] = PartitionSweep(view)

    def lost(self, number: int) -> None:
        gone = self._partitions.pop(number, None)
        if gone is not None:
            self.counts.subtract(gone.statuses.values())

    def changed(self, number: int, keys: Iterable[bytes]) -> None:
        """Note changed rows of a partition; called for each batch."""
        partition = self._partitions.get(number)
        if partition is not None:
            partition.dirty.update(keys)

    @property
    def stuck(self) -> list[str]:
        """Ids of the ceremonies that wait for nothing."""
        return sorted(key.decode() for partition in self._partitions.values() for key in partition.stuck)

    async def run(self) -> None:
        while True:
            await self.turn()
            await self._clock.sleep(EVERY_SECONDS)

    async def turn(self) -> None:
        """Examine changed rows within the budget, and set the metrics."""
        until = self._clock.monotonic() + BUDGET_SECONDS
        named = 0
        for partition in list(self._partitions.values()):
            while partition.dirty and self._clock.monotonic() < until:
                for row in self._judge(partition):
                    named += 1
                    if named <= LOGGED_PER_TURN:
                        _log_stuck(row)
                await self._clock.sleep(0)
        self._show()

    def _judge(self, partition: PartitionSweep) -> list[Instance]:
        """Examine some rows; return those that have become stuck."""
        keys = [partition.dirty.pop() for _ in range(min(ROWS_PER_TURN, len(partition.dirty)))]
        rows = dict(partition.view.scan(CEREMONIES, keys=keys))
        found = []
        for key in keys:
            row = rows.get(key)
            self._count(partition, key, row)
            if not self._is_stuck(partition, key, row):
                partition.stuck.discard(key)
            elif row is not None and key not in partition.stuck:
                partition.stuck.add(key)
                found.append(row)
        return found

    def _count(self, partition: PartitionSweep, key: bytes, row: Instance | None) -> None:
        if self._partitions.get(partition.view.number) is not partition:
            return  # lost meanwhile: its rows no longer count
        before = partition.statuses.get(key)
        if before is not None:
            self.counts[before] -= 1
        if row is None:
            partition.statuses.pop(key, None)
        else:
            partition.statuses[key] = row.status
            self.counts[row.status] += 1

    def _is_stuck(self, partition: PartitionSweep, key: bytes, row: Instance | None) -> bool:
        """Note the waits of a row; return whether it has none."""
        if row is None or row.status in TERMINAL:
            partition.waits.remove(key)
            return False
        try:
            definition = self._definition_of(partition.view, row)
            partition.waits.put(key, row, definition)
            return definition is None or not waiting_for(row, definition)
        except MemoryError:
            raise
        except Exception:
            log.exception("stuck_not_judged", instance=row.instance_id, version=row.version)
            return True

    def _show(self) -> None:
        for status in CeremonyStatus:
            self._metrics.by_status.labels(status.value).set(self.counts[status])
        self._metrics.stuck.set(sum(len(partition.stuck) for partition in self._partitions.values()))
        self._metrics.unexamined.set(sum(len(partition.dirty) for partition in self._partitions.values()))
        self._show_waits()

    def _show_waits(self) -> None:
        metrics, waits = self._metrics, [partition.waits for partition in self._partitions.values()]
        now = self._now()
        for kind, count, since in merged(waits):
            metrics.waiting.labels(kind).set(count)
            metrics.oldest_wait.labels(kind).set(max(0, now - since) / 1000 if now and since else 0)
        open_gates: Counter[str] = Counter()
        for one in waits:
            for definition, gates in one.gates.items():
                open_gates[metrics.definition_names.of(definition)] += gates
        for name in self._shown.keys() | open_gates.keys():
            metrics.open_gates.labels(name).set(open_gates[name])
        self._shown = open_gates


def _log_stuck(row: Instance) -> None:
    log.error(
        "ceremony_stuck",
        instance=row.instance_id,
        state=row.state,
        status=row.status.value,
        version=row.version,
        correlation_id=row.correlation_id,
        todo=f"ceremony doctor {row.instance_id}",
    )
