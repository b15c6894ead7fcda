"""Messages to NATS of publish steps: one port that each of them passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from ports.errors import CeremonyError
from ports.provenance import NOWHERE, Provenance


class Published(msgspec.Struct, frozen=True):
    """JetStream's acknowledgement."""

    stream: str
    sequence: int
    duplicate: bool


class PublishRefused(CeremonyError):
    """NATS refused the message (no stream for the subject, too large): publishing it again does not help."""


class Outbound(Protocol):
    """The one way out to NATS for messages of publish steps; the events bridge publishes those of the log."""

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
        """Publish `payload` in an envelope (specification 16.1).

        `key`, `publish/<instance>/<step>/<visit>`, is idempotency key and `Nats-Msg-Id`. Returns after
        JetStream's acknowledgement. Raises Unreachable or PublishRefused.
        """
