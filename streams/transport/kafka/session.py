"""The session of a consumer in its group: tells when the group may have replaced the consumer."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer

from ports.clock import Clock

# After this time without a heartbeat the group assigns a member's partitions to others.
SESSION_SECONDS = 6.0


class GroupSession:
    """Fresh while the group has answered a heartbeat sent less than a session timeout ago.

    The broker counts from the heartbeat's arrival, the session from its sending. So a frozen or disconnected member
    turns stale before the group replaces it. An answer that announces a rebalance does not count, because a member
    that gives up too late is replaced, too.
    """

    def __init__(self, group: AIOKafkaConsumer, clock: Clock, seconds: float = SESSION_SECONDS) -> None:
        """`group` must be started and not subscribed yet."""
        self._clock = clock
        self._seconds = seconds
        self._known = float("-inf")
        self._coordinator = group._coordinator
        self._beat = self._coordinator._do_heartbeat
        self._coordinator._do_heartbeat = self._heartbeat

    @property
    def fresh(self) -> bool:
        return self._clock.monotonic() - self._known < self._seconds

    def joined(self) -> None:
        """Note a new assignment by the group."""
        self._known = self._clock.monotonic()

    async def _heartbeat(self) -> bool:
        sent = self._clock.monotonic()
        known: bool = await self._beat()
        if known and not self._coordinator._rejoin_needed_fut.done():
            self._known = sent
        return known
