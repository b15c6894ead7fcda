"""The Outbound port that lets no secret and no raw prompt out: each message of a publish step passes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ports.errors import Unreachable
from ports.outbound import Outbound, Published, PublishRefused
from ports.provenance import NOWHERE, Provenance
from ports.redaction import Detection, Redactor
from streams.api import Unavailable
from streams.idempotency import key_parts

PAYLOAD_REJECTED = "payload_rejected"
# Findings that an error names, and characters of the path of each.
NAMED, LONGEST_PATH = 10, 200


class ScreenedOutbound:
    """Implements `ports.outbound.Outbound` above the one that sends.

    A payload is sent as it is or not at all.
    """

    def __init__(self, outbound: Outbound, redactor: Redactor, prompts_of: Callable[[str], tuple[str, ...]]) -> None:
        """`prompts_of` returns the prompts of a ceremony's definition by instance id. Raises Unavailable."""
        self._outbound = outbound
        self._redactor = redactor
        self._prompts_of = prompts_of

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
        """Publish. Raises PublishRefused (`payload_rejected`) for a payload with a finding."""
        self._check(payload, key)
        return await self._outbound.publish(
            subject,
            event_type,
            payload,
            key=key,
            correlation_id=correlation_id,
            causation_id=causation_id,
            provenance=provenance,
        )

    def _check(self, payload: Mapping[str, Any], key: str) -> None:
        try:
            prompts = self._prompts_of(key_parts(key)[0])
        except Unavailable as error:  # its partition moves; the step asks again
            raise Unreachable("tables", error.message) from None
        found = self._redactor.of(prompts).redact(payload).findings
        if found:
            raise PublishRefused(PAYLOAD_REJECTED, _rejection(found))


def _rejection(found: Sequence[Detection]) -> str:
    named = ", ".join(f"{one.path[:LONGEST_PATH]} ({one.rule})" for one in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"the payload holds secrets or raw prompts at {named}{more}; leave them out, or publish a reference to them"
