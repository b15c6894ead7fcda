"""How every step agent reads its requests: what is broken, late or a repetition never reaches the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import structlog

from ports.log import Batch, Record
from tables.effects import StepRequested, decode_request, request_decoder
from tables.errors import Undecodable

B = TypeVar("B")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the root tells every agent of the log."""

    commands: str
    """Full name of the topic that takes outcomes; as many partitions as the step topics have."""
    correlation_header: str
    log_now: Callable[[], int]
    """Now by the log's clock, in milliseconds; 0 while it is not known, and then nothing is late."""


class Asked(msgspec.Struct, Generic[B], frozen=True, gc=False):
    """One request that is to be served."""

    record: Record
    request: StepRequested
    body: B


class Served:
    """Remembers where effects were first read; the oldest are forgotten, so its size is bounded."""

    def __init__(self, kept: int = 10_000) -> None:
        self._kept = kept
        self._new: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def repeats(self, effect_id: str, offset: int) -> bool:
        """Whether this is a second copy of an effect, further on in its partition.

        The same record read again is none: its partition was given up, and its outcome may be lost.
        """
        first = self._new.get(effect_id)
        if first is None:
            first = self._old.get(effect_id)
        if first is not None and first < offset:
            return True
        self._new[effect_id] = offset
        if len(self._new) >= self._kept:
            self._old, self._new = self._new, {}
        return False


class RequestReader(Generic[B]):
    """The requests of one kind, whose bodies have the shape of the struct `body`."""

    def __init__(self, wiring: Wiring, body: type[B]) -> None:
        self._now = wiring.log_now
        self._decoder = request_decoder(body)
        self._served = Served()

    def requests(self, batch: Batch) -> Iterator[Asked[B]]:
        """What is to be served of a batch, in order. Raises FormatTooNew: that ends the worker."""
        for record in batch:
            try:
                request = decode_request(record.value, self._decoder)
            except Undecodable as error:
                batch.dead_letter(record, error.code, error.message)
                continue
            if 0 < request.deadline <= self._now():
                log.debug("late_request_dropped", instance=request.instance_id, step=request.step_id, effect=request.id)
            elif not self._served.repeats(request.id, record.offset):
                yield Asked(record, request, request.body)
