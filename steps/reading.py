"""Requests of step agents: broken and repeated ones are left out, late ones are answered without being served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import structlog

from ports.log import Batch, Header, Record
from ports.provenance import Provenance, provenance_of
from steps.outcome import Outcome, encode_outcome
from tables.effects import StepRequested, decode_request, request_decoder
from tables.errors import Undecodable

B = TypeVar("B")
log = structlog.get_logger(__name__)
# Answer to a request past its deadline. A clock may have been ahead: an attempt that is still live is requested again,
# until its timeout.
LATE = Outcome("unreachable", code="late", message="read past its deadline by the log's clock")


@dataclass(frozen=True, slots=True)
class Wiring:
    """Facts of the log that every agent needs."""

    commands: str
    """Full name of the topic that takes outcomes; as many partitions as the step topics have."""
    correlation_header: str
    log_now: Callable[[], int]
    """Time of the log's clock in milliseconds; 0 while it is not known: then no request is late."""

    def headers(self, request: StepRequested) -> tuple[Header, ...]:
        """Return the headers of an outcome."""
        return ((self.correlation_header, request.correlation_id.encode()),)


class Asked(msgspec.Struct, Generic[B], frozen=True, gc=False):
    """One request to be served."""

    record: Record
    request: StepRequested
    body: B
    traceparent: str = ""
    """Trace context of the call, where it has a span of its own."""

    @property
    def provenance(self) -> Provenance:
        """The ceremony, as the request's headers name it, with the trace of this attempt or call."""
        found = provenance_of(self.request.instance_id, dict(self.record.headers))
        return found._replace(traceparent=self.traceparent) if self.traceparent else found


class Served:
    """The offsets at which effects were first read, bounded in number: the oldest are forgotten."""

    def __init__(self, kept: int = 10_000) -> None:
        self._kept = kept
        self._new: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def repeats(self, effect_id: str, offset: int) -> bool:
        """Return whether this record is a second copy of an effect, at a later offset.

        The same record read again does not count: its partition was given up, and its outcome may be lost.
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
    """Reads the requests of one kind, whose bodies are structs `body`."""

    def __init__(self, wiring: Wiring, body: type[B]) -> None:
        self._wiring = wiring
        self._decoder = request_decoder(body)
        self._served = Served()

    def requests(self, batch: Batch) -> Iterator[Asked[B]]:
        """Yield the requests of a batch to be served, in order. Raises FormatTooNew, which ends the worker."""
        for record in batch:
            try:
                request = decode_request(record.value, self._decoder)
            except Undecodable as error:
                batch.dead_letter(record, error.code, error.message)
                continue
            if self._served.repeats(request.id, record.offset):
                continue
            if 0 < request.deadline <= self._wiring.log_now():
                self._answer_late(batch, request)
            else:
                yield Asked(record, request, request.body)

    def _answer_late(self, batch: Batch, request: StepRequested) -> None:
        log.debug("late_request", instance=request.instance_id, step=request.step_id, effect=request.id)
        key, value = request.instance_id.encode(), encode_outcome(request, LATE)
        batch.send(self._wiring.commands, key, value, self._wiring.headers(request))
