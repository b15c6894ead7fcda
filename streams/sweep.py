"""Looks through the owned rows for ceremonies that wait for nothing: liveness is an invariant (design §2).

A stuck ceremony means a bug of the fold: it is counted in `ceremony_stuck`, and named in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog
from prometheus_client import Gauge

from steps.ports import Clock
from streams.front import Unavailable
from tables.definition import Definition
from tables.instance import TERMINAL, Instance
from tables.liveness import waiting_for

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 60.0
SLICE = 200
"""Rows looked at before the loop gets its turn: two milliseconds or so."""
NAMED = 20
"""Stuck ceremonies named in the log, of each sweep."""


class Owned(Protocol):
    """What the sweep needs of the engine."""

    def owned(self) -> Sequence[Instance]: ...

    def definition_of(self, instance: Instance) -> Definition | None: ...


class Sweep:
    """Goes through all owned rows once a minute."""

    def __init__(self, engine: Owned, clock: Clock, stuck: Gauge) -> None:
        self._engine = engine
        self._clock = clock
        self._stuck = stuck

    async def run(self) -> None:
        """For ever; ends by being cancelled."""
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            self._stuck.set(await self.count())

    async def count(self) -> int:
        """How many ceremonies are stuck. A row is immutable: that it may be replaced meanwhile does no harm."""
        found = 0
        for number, row in enumerate(self._engine.owned(), start=1):
            if number % SLICE == 0:
                await self._clock.sleep(0)
            if row.status not in TERMINAL and self._is_stuck(row):
                found += 1
                if found <= NAMED:
                    log.error("ceremony_stuck", instance=row.instance_id, state=row.state, version=row.version)
        return found

    def _is_stuck(self, row: Instance) -> bool:
        try:
            definition = self._engine.definition_of(row)
        except Unavailable:  # its partition went to another worker
            return False
        return definition is not None and not waiting_for(row, definition)
