"""The trace context of each ceremony and attempt, made of the row alone.

A worker that exports spans passes on the ids of its own spans; any other passes on the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from ports.log import Header
from ports.provenance import DEFINITION, TRACEPARENT
from ports.traces import TraceContext, derived_context, parse_traceparent
from tables.instance import Instance

# Ceremonies whose contexts are kept.
KEPT = 4096
# Decides by its trace id whether a trace is sampled, if no caller did.
Sampler = Callable[[str], bool]


class Tracing:
    """The trace contexts of ceremonies."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        """`sampler` is None where no spans are exported."""
        self._sampler = sampler
        self._cached = lru_cache(maxsize=KEPT)(self._root)

    @property
    def is_on(self) -> bool:
        return self._sampler is not None

    def root(self, row: Instance) -> TraceContext:
        """Return the context of the ceremony's own span."""
        return self._cached(row.instance_id, row.created_at, row.traceparent)

    def attempt(self, row: Instance, step_id: str, attempt: int) -> TraceContext:
        """Return the context of one attempt of a step."""
        root = self.root(row)
        return root if self._sampler is None else root.child(f"{step_id}/{attempt}")

    def headers(self, row: Instance) -> tuple[Header, ...]:
        """Return the headers of a ceremony's events."""
        return _headers(row.definition_name, self.root(row))

    def request_headers(self, row: Instance, step_id: str, attempt: int) -> tuple[Header, ...]:
        """Return the headers of a request to a step's agent."""
        return _headers(row.definition_name, self.attempt(row, step_id, attempt))

    def _root(self, instance_id: str, created_at: int, traceparent: str) -> TraceContext:
        caller = parse_traceparent(traceparent)
        own = derived_context(instance_id, created_at, sampled=False)
        if self._sampler is None:
            return caller or own
        if caller is not None:
            return own._replace(trace_id=caller.trace_id, sampled=caller.sampled)
        return own._replace(sampled=self._sampler(own.trace_id))


def _headers(definition_name: str, context: TraceContext) -> tuple[Header, ...]:
    return (DEFINITION, definition_name.encode()), (TRACEPARENT, context.traceparent.encode())
