"""The engine of one worker: commands, reads and partitions served, kept up to date by the ceremony agent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ports.clock import Clock
from ports.history import HistoryCopy
from ports.log import Batch, Log, PartitionView
from ports.redaction import Redactor
from streams.ceremony_agent import applied_rows
from streams.command_log import CommandLog
from streams.journal import Journal
from streams.log_clock import LogClock
from streams.metrics import Metrics
from streams.outcomes import Outcomes
from streams.partitions import Partitions, PinnedRow
from streams.reads import Reads
from streams.row_indexes import RowIndexes
from streams.spans import FoldedSpans
from streams.stuck import StuckSweep
from streams.timers import Timers
from streams.topics import COMMANDS, prefixed
from streams.turns import Turns
from tables.definition import Definition
from tables.instance import Instance
from tables.kinds import Kinds


class Engine:
    """`commands`, `reads` and `partitions` of one worker; the driver calls `taken`, `applied` and `lost`.

    `unserved`, `held`, `fresh`: see `Partitions`; `max_lag`: see `CommandLog`.
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
        redactor: Redactor,
        held: Callable[[], Collection[int] | None] | None = None,
        fresh: Callable[[], bool] = lambda: True,
        max_lag: int = 0,
        journal: Journal | None = None,
        history_copy: HistoryCopy | None = None,
        spans: FoldedSpans | None = None,
    ) -> None:
        self.partitions = Partitions(log, partitions, unserved=unserved, held=held, fresh=fresh)
        self.redactor = redactor
        self.turns = Turns(clock)
        """For heavy reads, and for heavy requests of the front."""
        self.indexes = RowIndexes(clock, self.turns, self._pinned, kinds)
        """Of the ceremonies, for lists."""
        self.reads = Reads(
            log,
            clock,
            log_clock,
            partitions=self.partitions,
            kinds=kinds,
            prefix=prefix,
            known_end=self._known_end,
            turns=self.turns,
            redactor=redactor,
            indexes=self.indexes,
            history_copy=history_copy,
        )
        self.commands = CommandLog(
            log,
            prefixed(prefix, COMMANDS),
            clock,
            log_clock,
            partitions=self.partitions,
            reads=self.reads,
            max_lag=max_lag,
        )
        self.sweep = StuckSweep(clock, metrics, self.reads.pinned, log_clock.now)
        self.timers: Timers | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called after a partition was taken or lost."""
        self.spans = spans
        """Exports spans of what was folded; without it there are none."""
        self.journal = journal
        """Writes log lines on what was folded; without one there are none."""
        self._metrics = metrics
        self._outcomes = Outcomes(metrics)
        metrics.partitions_configured.set(partitions)

    def _pinned(self, view: PartitionView, row: PinnedRow) -> Definition | None:
        return self.reads.pinned(view, row)

    def _known_end(self, number: int) -> int:
        return self.commands.admission.known_end(number)

    async def taken(self, view: PartitionView) -> None:
        """Take a recovered partition; it is not served before it has folded to the end seen at take-over."""
        self.partitions.taken(view)
        self.commands.admission.taken(view.number, view.end_at_take_over)
        self._metrics.partitions.set(len(self.partitions))
        self.sweep.taken(view)
        self.indexes.taken(view)
        if self.timers is not None:
            await self.timers.taken(view)
        self.on_change()

    def applied(self, batch: Batch) -> None:
        """A batch is visible: wake the clients that wait for it."""
        folding = applied_rows(batch.note)
        folding.tally.add_to(self._metrics)
        self._outcomes.count(folding.folded)
        self.sweep.changed(batch.partition, folding.rows)
        self.indexes.changed(batch.partition, folding.rows, folding.before)
        if self.timers is not None and folding.rows:
            self.timers.changed(batch.partition, folding.rows)
        if folding.replies:
            self.commands.replies.resolve(folding.replies)
        self.reads.changed(folding.rows)
        if self.journal is not None:
            self.journal.write(folding.folded)
        if self.spans is not None:
            self.spans.write(folding.folded)

    def substituted(self, newest: Instance, substitute: Instance) -> None:
        """A row that cannot be written was replaced by another one (specification 18.16)."""
        key = substitute.instance_id.encode()
        self.indexes.changed(self.partitions.number_of(substitute.instance_id), {key: substitute}, {key: newest})

    def lost(self, number: int) -> None:
        """Give a partition up: its clients get Unavailable."""
        self.partitions.lost(number)
        self._metrics.partitions.set(len(self.partitions))
        self.commands.lost(number)
        self.sweep.lost(number)
        self.indexes.lost(number)
        if self.timers is not None:
            self.timers.lost(number)
        self.reads.lost()
        self.on_change()
