"""An engine on a real log without a fold, for the tests of commands, reads and partitions."""

from __future__ import annotations

from typing import Any

from bridge.clock import HostClock
from steps.registry import all_kinds
from steps.secrets.redactor import TextRedactor
from streams.ceremony_agent import Folding
from streams.engine import Engine
from streams.log_clock import LogClock
from streams.metrics import process_metrics
from streams.transport.sqlite.log import SqliteLog
from streams.waiters import FoldResult, ReplyKey
from tables.commands import Cancel, decode_command
from tests.streams.fakes import MemoryBatch, MemoryView

PARTITIONS = 3


class EngineSite:
    """An engine whose partitions are served, on a log without a fold."""

    def __init__(self, log: SqliteLog) -> None:
        self.log = log
        self.unserved: dict[int, tuple[str, str]] = {}
        self.clock = HostClock()
        self.log_clock = LogClock(self.clock)
        self.engine = Engine(
            log=log,
            unserved=lambda: self.unserved,
            clock=self.clock,
            log_clock=self.log_clock,
            kinds=all_kinds(),
            prefix="t",
            partitions=PARTITIONS,
            metrics=process_metrics(),
            max_lag=3,
            redactor=TextRedactor(),
        )
        self.views = [MemoryView(number) for number in range(PARTITIONS)]

    def home(self, instance_id: str = "c1:s1") -> MemoryView:
        return self.views[self.log.partition_of(instance_id.encode(), PARTITIONS)]

    async def serve(self) -> None:
        for view in self.views:
            await self.engine.taken(view)

    async def commands(self) -> list[Any]:
        found = []
        for partition, (begin, end) in enumerate(await self.log.ends("t.commands")):
            async for records in self.log.read("t.commands", partition, begin, end):
                found += [decode_command(record.value) for record in records]
        return found

    def fold(self, command: Cancel, result: FoldResult) -> None:
        """Apply a batch with this result, as if the command was folded."""
        batch = MemoryBatch(self.home(), [])
        batch.note = Folding(replies={ReplyKey.of(command): result})
        self.engine.applied(batch)
