"""The ownership of one partition: it is taken, served, given up and closed, each exactly once and in this order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ports.clock import Clock
from ports.errors import CeremonyError
from ports.log import Fenced, LogFailed, LogUnavailable, StateLost
from streams.transport.partition.part import Part
from streams.transport.partition.positions import PartitionNotServed

logger = logging.getLogger(__name__)

# Returns whether an assignment is still the present one.
IsCurrent = Callable[[], bool]

# Pause before a failed partition is taken again; gives a fenced worker time to learn of a rebalance.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
# Pause while the group is between two assignments, which takes some milliseconds.
BETWEEN_ASSIGNMENTS_SECONDS = 0.1
# Time for the last checkpoint, once the agent has finished or was left.
LAST_CHECKPOINT_SECONDS = 15.0


class Superseded(CeremonyError):
    """The group's generation changed while a partition was being taken: it has another owner now."""

    def __init__(self) -> None:
        super().__init__("superseded", "the partition has another owner now")


class Ownership:
    """One partition of one agent, from its assignment to the moment at which nothing of it is open any more.

    `give_up` cancels the take, the serving, or a pause, each a task of its own; never the closing that follows. So
    whatever a take has opened is closed on every way out. The next ownership of the same partition begins after that.
    """

    def __init__(
        self,
        name: str,
        new_part: Callable[[IsCurrent], Part],
        *,
        clock: Clock,
        is_current: IsCurrent,
        not_served: Callable[[PartitionNotServed], None],
        fail: Callable[[BaseException], None],
        former: Ownership | None = None,
    ) -> None:
        """`is_current`: whether the group still has the assignment that we know; between two of them it has not."""
        self.part: Part | None = None
        """The part while it is served."""
        self._name = name
        self._new_part = new_part
        self._clock = clock
        self._is_current = is_current
        self._not_served = not_served
        self._fail = fail
        self._former = former
        self._ours = True
        self._working: asyncio.Task[Any] | None = None
        self._task = clock.spawn(self._run(), name=f"{name} is served")

    @property
    def ended(self) -> bool:
        """True once nothing is open any more."""
        return self._task.done()

    async def closed(self) -> None:
        """Return once nothing is open any more."""
        await asyncio.wait({self._task})

    async def give_up(self, seconds: float) -> None:
        """Finish the batch in hand within `seconds`, checkpoint, and return once nothing is open any more."""
        self._ours = False
        if self.part is None:
            self._cancel()  # being taken, or pausing between attempts
        else:
            self.part.stop()
        if await self._ends_within(seconds):
            return
        if self.part is not None:
            logger.warning("%r: its agent did not finish the batch in hand within %.0f s", self.part, seconds)
            self.part.abort()
        if not await self._ends_within(LAST_CHECKPOINT_SECONDS):
            logger.error("%s does not end; it is dropped without a checkpoint", self._name)
            self._cancel()
            await self.closed()

    def _cancel(self) -> None:
        if self._working is not None:
            self._working.cancel()

    async def _ends_within(self, seconds: float) -> bool:
        try:
            async with self._clock.timeout(seconds):
                await self.closed()
        except TimeoutError:
            pass
        return self.ended

    # ---- taking and serving

    def _current(self) -> bool:
        return self._ours and self._is_current()

    async def _run(self) -> None:
        """Take and serve the partition while it is ours; take it again after a fence or a failure."""
        if self._former is not None:
            await self._former.closed()
            self._former = None
        pause = FIRST_PAUSE_SECONDS
        while self._ours:
            if self._current():
                if await self._served():
                    return
                if self._current():
                    await self._work(self._clock.sleep(pause))
                    pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                    continue
            if self._ours:
                await self._work(self._clock.sleep(BETWEEN_ASSIGNMENTS_SECONDS))

    async def _served(self) -> bool:
        """Take and serve the partition; return False if it is to be taken again."""
        try:
            await self._serve_once()
        except Superseded:
            return False
        except PartitionNotServed as reason:
            logger.error("%s is not served: %s", self._name, reason)
            self._not_served(reason)
        except Fenced:
            logger.warning("%s was fenced; it is dropped", self._name)
            return False
        except StateLost as loss:
            logger.warning("%s is taken anew from its changelog: %s", self._name, loss)
            return False
        except LogFailed as failure:
            logger.error("%s: %s", self._name, failure)
            self._fail(failure)
        except Exception as failure:
            logger.error("%s failed and is given up: %s", self._name, failure, exc_info=failure)
            return False
        return True

    async def _serve_once(self) -> None:
        part = self._new_part(self._current)
        try:
            began = self._clock.monotonic()
            await self._work(part.take())
            if not self._current():
                raise Superseded
            self.part = part
            if part.spec.on_recovered is not None:
                rows = sum(len(part.rows(table)) for table in part.table_names)
                part.spec.on_recovered(rows, self._clock.monotonic() - began)
            await self._work(part.run())
        finally:
            self.part = None
            await part.close()

    async def _work(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that `give_up` may cancel. Raises its errors, and CancelledError if it was cancelled."""
        working = self._working = self._clock.spawn(work, name=self._name)
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError:  # the event loop ends
            working.cancel()
            await asyncio.wait({working})
            raise
        finally:
            self._working = None
        if working.cancelled() and self._ours:
            raise LogUnavailable("interrupted", f"{self._name} was interrupted, but not by us")
        working.result()
