"""The indexes of the partitions served here: filled after a take-over, and kept up in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from ports.clock import Clock
from ports.errors import CeremonyError
from ports.log import PartitionView
from streams.api import Matches, Query, Unavailable
from streams.partitions import DefinitionLookup
from streams.row_index import PartitionIndex
from streams.search import search
from streams.topics import CEREMONIES
from streams.turns import Turns
from tables.instance import Instance
from tables.kinds import Kinds

log = structlog.get_logger(__name__)

# Changed rows are entered at this interval, so that a search finds few of them.
EVERY_SECONDS = 0.25
# How long a search waits for an index that is being filled.
FILL_SECONDS = 8.0


class RowIndexes:
    """Searches the partitions of one worker; the engine reports partitions and changed rows."""

    def __init__(self, clock: Clock, turns: Turns, definition_of: DefinitionLookup, kinds: Kinds) -> None:
        self._clock = clock
        self._turns = turns
        self._definition_of = definition_of
        self._kinds = kinds
        self._indexes: dict[int, PartitionIndex] = {}
        self._filling: dict[int, asyncio.Task[None]] = {}

    def taken(self, view: PartitionView) -> None:
        """Index a recovered partition. Its rows are read later, so that it is served at once."""
        self.lost(view.number)
        self._indexes[view.number] = PartitionIndex(view, self._definition_of, self._kinds)

    def lost(self, number: int) -> None:
        self._indexes.pop(number, None)
        if (filling := self._filling.pop(number, None)) is not None:
            filling.cancel()

    def changed(
        self, number: int, rows: Mapping[bytes, Instance | None], before: Mapping[bytes, Instance | None]
    ) -> None:
        """Note rows of a partition that became visible, with the rows that they replaced."""
        index = self._indexes.get(number)
        if index is None:
            return
        try:
            index.changed(rows, before)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a batch that is folded must not fail for the sake of lists
            self._rebuild(index, error)

    async def search(self, number: int, query: Query, most: int) -> Matches:
        """Search one partition. Raises Unavailable if it was lost, or its index is not filled in time."""
        index = self._indexes.get(number)
        if index is None:
            raise Unavailable(f"partition {number} is not served here any more")
        if not index.filled:
            await self._wait_until_filled(index)
        try:
            return await self._turns.run(search(index, query, most))
        except (CeremonyError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._rebuild(index, error)
            raise Unavailable(f"the index of partition {number} is being built anew") from None

    def _rebuild(self, index: PartitionIndex, error: Exception) -> None:
        """Build an index anew that cannot be kept up; only lists wait for it, and every ceremony goes on."""
        number = index.view.number
        log.error("index_failed", partition=number, ceremonies=len(index), exc_info=error)
        if self._indexes.get(number) is index:
            self.taken(index.view)

    async def _wait_until_filled(self, index: PartitionIndex) -> None:
        try:
            async with self._clock.timeout(FILL_SECONDS):
                await asyncio.shield(self._filled(index))
        except TimeoutError:
            rows = len(index.view.rows(CEREMONIES))
            text = f"the index of partition {index.view.number} is being built: {len(index)} of {rows} ceremonies"
            raise Unavailable(text, retry_after_seconds=FILL_SECONDS) from None
        except asyncio.CancelledError:
            if self._indexes.get(index.view.number) is index:
                raise
            raise Unavailable(f"partition {index.view.number} is not served here any more") from None

    def _filled(self, index: PartitionIndex) -> asyncio.Task[None]:
        """The task that fills an index, whoever asks first."""
        number = index.view.number
        task = self._filling.get(number)
        if task is None or (task.done() and not index.filled):
            task = self._filling[number] = self._clock.spawn(self._fill(index), name=f"index[{number}]")
        return task

    async def _fill(self, index: PartitionIndex) -> None:
        for _ in index.fill():
            await self._turns.next()

    async def run(self) -> None:
        """Fill the indexes of taken partitions, and enter changed rows, until cancelled."""
        while True:
            for index in list(self._indexes.values()):
                try:
                    await self._keep_up(index)
                except (CeremonyError, MemoryError):  # a row that cannot be read ends the worker, as elsewhere
                    raise
                except Exception as error:  # noqa: BLE001 - as above
                    self._rebuild(index, error)
            await self._clock.sleep(EVERY_SECONDS)

    async def _keep_up(self, index: PartitionIndex) -> None:
        if not index.filled:
            await asyncio.wait({filling := self._filled(index)})
            if filling.cancelled():
                return  # lost meanwhile
            filling.result()
        for _ in index.catch_up():
            await self._turns.next()
