"""The session of a consumer in its group: tells when the group may have replaced the consumer."""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest

from ports.clock import Clock

# After this time without a heartbeat the group assigns a member's partitions to others.
SESSION_SECONDS = 6.0


class GroupSession:
    """Fresh while the group has confirmed the membership by its answer to a request sent less than a timeout ago.

    The broker counts from the request's arrival, the session from its sending. So a frozen or disconnected member turns
    stale before the group replaces it, also one that reads an old answer when it wakes up. A heartbeat whose answer
    announces a rebalance does not count, because a member that joins again too late is replaced, too.
    """

    def __init__(self, group: AIOKafkaConsumer, clock: Clock, seconds: float = SESSION_SECONDS) -> None:
        """`group` must be started and not subscribed yet."""
        self._clock = clock
        self._seconds = seconds
        self._known = float("-inf")
        coordinator = group._coordinator
        self._send = coordinator._send_req
        coordinator._send_req = self._send_and_note

    @property
    def fresh(self) -> bool:
        return self._clock.monotonic() - self._known < self._seconds

    async def _send_and_note(self, request: Any) -> Any:
        sent = self._clock.monotonic()
        response = await self._send(request)
        if isinstance(request, HeartbeatRequest | SyncGroupRequest) and response.error_code == 0:
            self._known = max(self._known, sent)
        return response
