"""The Outbound port that sends no message twice whose acknowledgement is recorded, in the row or in a store.

A step request may be read again long after its message was sent, when JetStream has forgotten the message's id. So the
ceremony's row is looked at first, once it has every command that was in the log when its partition was taken. A store,
where one is configured, also knows an acknowledgement whose command was not appended any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ports.clock import Clock
from ports.errors import Unreachable
from ports.idempotency import HeldByAnother, IdempotencyStore
from ports.log import LogUnavailable
from ports.outbound import Outbound, Published
from ports.provenance import NOWHERE, Provenance
from streams.metrics import Metrics
from streams.partitions import Partitions
from streams.topics import CEREMONIES
from tables.instance import Instance

PUBLISH_PREFIX = "publish/"
# The row records that a message was acknowledged, not its place in the stream; nobody is told of it a second time.
RECORDED_IN_ROW = Published("", 0, duplicate=True)
# How long a store that did not answer is left alone, so that its outage delays one publish and not all of them.
STORE_PAUSE_SECONDS = 5.0
MOVING_PAUSE_SECONDS = 0.05


class IdempotentOutbound:
    """Implements `ports.outbound.Outbound` above another one."""

    def __init__(
        self,
        outbound: Outbound,
        clock: Clock,
        partitions: Partitions,
        metrics: Metrics,
        store: IdempotencyStore | None = None,
    ) -> None:
        self._outbound = outbound
        self._clock = clock
        self._rows = RecordsInRows(partitions, clock)
        self._store = None if store is None else _PausedStore(store, clock, metrics)

    async def publish(
        self,
        subject: str,
        event_type: str,
        payload: Mapping[str, Any],
        *,
        key: str,
        correlation_id: str,
        causation_id: str | None = None,
        provenance: Provenance = NOWHERE,
    ) -> Published:
        """Publish, unless the row or the store has the acknowledgement: then return that one, as a duplicate."""
        recorded = await self._recorded(key)
        if recorded is not None:
            return recorded
        published = await self._outbound.publish(
            subject,
            event_type,
            payload,
            key=key,
            correlation_id=correlation_id,
            causation_id=causation_id,
            provenance=provenance,
        )
        if self._store is not None:
            await self._store.complete(key, published)
        return published

    async def _recorded(self, key: str) -> Published | None:
        if await self._rows.acknowledged(key):
            return RECORDED_IN_ROW
        recorded = None if self._store is None else await self._store.claim(key)
        return None if recorded is None else Published(recorded.stream, recorded.sequence, duplicate=True)


class RecordsInRows:
    """Acknowledgements that the rows of this worker record, by key `publish/<instance>/<step>/<visit>`."""

    def __init__(self, partitions: Partitions, clock: Clock) -> None:
        self._partitions = partitions
        self._clock = clock

    async def acknowledged(self, key: str) -> bool:
        """Return whether the row says that the message of this key was acknowledged.

        Waits until the row's partition has folded to the log end at its take-over. The caller bounds that.
        """
        instance_id, step_id, visit = key_parts(key)
        while True:
            view = self._partitions.taken_view(instance_id)
            if view is None:
                await self._clock.sleep(MOVING_PAUSE_SECONDS)
                continue
            try:
                if view.position < view.end_at_take_over:
                    await view.folded(view.end_at_take_over - 1)
                    continue
                row: Instance | None = view.rows(CEREMONIES).get(instance_id.encode())
            except LogUnavailable:  # given up meanwhile: its next owner reads the request again
                await self._clock.sleep(MOVING_PAUSE_SECONDS)
                continue
            return row is not None and step_id in row.steps and row.steps[step_id].announced >= visit


def key_parts(key: str) -> tuple[str, str, int]:
    """Return instance, step and visit of the key of a publish step."""
    instance_id, step_id, visit = key.removeprefix(PUBLISH_PREFIX).rsplit("/", 2)
    return instance_id, step_id, int(visit)


class _PausedStore:
    """The store, whose failures only cost its knowledge: a failed call is counted, and the next ones are left out."""

    def __init__(self, store: IdempotencyStore, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._paused_until = 0.0

    async def claim(self, key: str) -> Published | None:
        """Claim the key. Waits once for the lease of a holder; raises Unreachable while it publishes for longer."""
        claimed = await self._claim(key)
        if isinstance(claimed, HeldByAnother):
            await self._clock.sleep(claimed.seconds)
            claimed = await self._claim(key)
        if isinstance(claimed, HeldByAnother):
            raise Unreachable("publication", "another worker is publishing this message")
        return claimed

    async def _claim(self, key: str) -> Published | HeldByAnother | None:
        if self._clock.monotonic() < self._paused_until:
            self._metrics.idempotency.labels("row").inc()
            return None
        try:
            claimed = await self._store.claim(key)
        except Unreachable:
            self._failed()
            return None
        self._metrics.idempotency.labels("store").inc()
        return claimed

    async def complete(self, key: str, published: Published) -> None:
        if self._clock.monotonic() < self._paused_until:
            return
        try:
            await self._store.complete(key, published)
        except Unreachable:
            self._failed()

    def _failed(self) -> None:
        self._metrics.idempotency.labels("row").inc()
        self._paused_until = self._clock.monotonic() + STORE_PAUSE_SECONDS
