"""Writes that keep failing: announced once for each instance and store, and kept in a ledger until the store is back.

The announcement is a record of the topic `events`, so that it outlives this process and leaves by the events bridge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec
import structlog

from bridge.projection import metrics
from bridge.projection.store import StoreError
from ports.clock import Clock
from ports.log import Log, LogUnavailable
from ports.provenance import DEFINITION, TRACEPARENT
from ports.traces import derived_context, parse_traceparent
from streams import topics
from streams.envelope import envelope
from tables.read_model import Document

SUBJECT = "ceremony.dualwrite.reconcile.requested"
SAVE_INSTANCE = "save_instance"
PENDING, COMPLETED = "PENDING", "COMPLETED"
# A write that failed so often, over so long, is announced.
FAILURES, FAILING_SECONDS = 3, 10.0
LEDGER_SECONDS = 2.0

log = structlog.get_logger(__name__)


class _Traced(msgspec.Struct):
    """The part of a document's `engine` from which its trace follows."""

    created_at: int
    traceparent: str = ""


class LedgerEntry(msgspec.Struct, frozen=True):
    """One write that failed, as the ledger shows it."""

    operation_id: str
    """`save_instance:<instance id>:<version>`."""
    store: str
    status: str
    attempts: int
    last_error: str
    created_at: str
    updated_at: str


class Ledger(Protocol):
    """The ledger of failed writes. Every call raises StoreError."""

    async def pending(self, store: str) -> Collection[LedgerEntry]:
        """Return the entries that are PENDING for a store."""

    async def put(self, entries: Sequence[LedgerEntry]) -> None:
        """Write entries; those that are PENDING are in the set, the others are not."""

    async def close(self) -> None: ...


class FailingWrite:
    """The failures of one write."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None
        self.attempts = 0

    def failed(self) -> bool:
        """Note a failure; return whether the write has failed often and long enough."""
        self.attempts += 1
        now = self._clock.monotonic()
        if self._since is None:
            self._since = now
        return self.attempts >= FAILURES and now - self._since >= FAILING_SECONDS


class DualWrites:
    """The failed writes of one store."""

    def __init__(
        self, log: Log, ledger: Ledger | None, clock: Clock, *, store: str, prefix: str, partitions: int
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._clock = clock
        self._store = store
        self._events = topics.prefixed(prefix, topics.EVENTS)
        self._partitions = partitions
        self._open: dict[str, LedgerEntry] = {}
        """Failed writes by instance id, of this process and of those before it."""
        self._unwritten: dict[str, LedgerEntry] = {}
        """Entries that the ledger does not have yet, by instance id."""
        self._is_loaded = ledger is None

    async def close(self) -> None:
        if self._ledger is not None:
            await self._ledger.close()

    def forget(self) -> None:
        """Ask the ledger again: a partition came from another process, which may have left entries."""
        self._is_loaded = self._ledger is None

    async def failed(self, documents: Iterable[Document], error: StoreError, attempts: int) -> None:
        """Announce the write of each instance that is not announced yet."""
        await self._load()
        with contextlib.suppress(LogUnavailable):  # then the rest is announced after the next failure
            for document in documents:
                if document.instance_id in self._open:
                    self._note(document.instance_id, attempts=attempts, last_error=error.reason)
                else:
                    await self._announce(document, error, attempts)
        await self.settle()

    async def done(self, instance_ids: Iterable[str]) -> None:
        """Complete the entries of instances that the store has now."""
        found = [instance_id for instance_id in instance_ids if instance_id in self._open]
        for instance_id in found:
            self._note(instance_id, status=COMPLETED)
            del self._open[instance_id]
        if found:
            await self.settle()

    async def done_up_to_date(self, partitions: Collection[int]) -> None:
        """Complete the entries of partitions whose rows the store has all, as a process before this one left them."""
        await self._load()
        await self.done([i for i in self._open if self._partition_of(i) in partitions])
        await self.settle()

    async def settle(self) -> None:
        """Write the entries that the ledger does not have, where it can be reached."""
        if self._ledger is None or not self._unwritten:
            self._unwritten.clear()
            return
        unwritten = dict(self._unwritten)
        with contextlib.suppress(StoreError, TimeoutError):
            async with self._clock.timeout(LEDGER_SECONDS):
                await self._ledger.put(list(unwritten.values()))
            for instance_id, entry in unwritten.items():
                if self._unwritten.get(instance_id) is entry:
                    del self._unwritten[instance_id]

    async def _load(self) -> None:
        """Learn of the entries that are pending, once the ledger can be reached."""
        if self._is_loaded or self._ledger is None:
            return
        with contextlib.suppress(StoreError, TimeoutError):
            async with self._clock.timeout(LEDGER_SECONDS):
                for entry in await self._ledger.pending(self._store):
                    self._open.setdefault(_instance_of(entry.operation_id), entry)
            self._is_loaded = True

    async def _announce(self, document: Document, error: StoreError, attempts: int) -> None:
        """Raises LogUnavailable."""
        operation_id = f"{SAVE_INSTANCE}:{document.instance_id}:{document.version}"
        now = self._now()
        payload = {
            "operation_id": operation_id,
            "operation_type": SAVE_INSTANCE,
            "operation_data": {
                "instance_id": document.instance_id,
                "correlation_id": document.correlation_id,
                "definition_name": document.definition_name,
                "error_message": error.reason,
                "store": self._store,
            },
        }
        key = f"{operation_id}:{self._store}"
        value = envelope(SUBJECT, payload, key, document.correlation_id, now)
        headers = [
            (topics.SUBJECT, SUBJECT.encode()),
            (topics.EFFECT_ID, key.encode()),
            (topics.CORRELATION_ID, document.correlation_id.encode()),
            (DEFINITION, document.definition_name.encode()),
            (TRACEPARENT, _traceparent_of(document).encode()),
        ]
        partition = self._partition_of(document.instance_id)
        await self._log.append(self._events, partition, document.instance_id.encode(), value, headers)
        metrics.ANNOUNCED.labels(self._store).inc()
        entry = LedgerEntry(operation_id, self._store, PENDING, attempts, error.reason, now, now)
        self._open[document.instance_id] = self._unwritten[document.instance_id] = entry

    def _note(self, instance_id: str, **changes: str | int) -> None:
        entry = msgspec.structs.replace(self._open[instance_id], updated_at=self._now(), **changes)
        self._open[instance_id] = self._unwritten[instance_id] = entry

    def _partition_of(self, instance_id: str) -> int:
        return self._log.partition_of(instance_id.encode(), self._partitions)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceparent_of(document: Document) -> str:
    kept = msgspec.json.decode(document.engine, type=_Traced)
    found = parse_traceparent(kept.traceparent)
    return (found or derived_context(document.instance_id, kept.created_at, sampled=False)).traceparent


def _instance_of(operation_id: str) -> str:
    """Return the instance id in `save_instance:<instance id>:<version>`."""
    return operation_id.removeprefix(f"{SAVE_INSTANCE}:").rpartition(":")[0]
