"""Whether a consumer group still counts a consumer as its member, as far as the consumer can know."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer

from ports.clock import Clock

# After so long without a heartbeat the group gives a member's partitions away.
SESSION_SECONDS = 6.0


class GroupSession:
    """Fresh while the group has answered a heartbeat that was sent less than a session timeout ago.

    The broker counts from the heartbeat's arrival, we from its sending: so a member that was frozen, or cut off, knows
    that it may have been replaced before the group replaces it. An answer that announces a rebalance does not count:
    who does not give up in time is replaced as well.
    """

    def __init__(self, group: AIOKafkaConsumer, clock: Clock, seconds: float = SESSION_SECONDS) -> None:
        """`group` must have been started; it is not subscribed yet."""
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
        """The group has just given an assignment."""
        self._known = self._clock.monotonic()

    async def _heartbeat(self) -> bool:
        sent = self._clock.monotonic()
        known: bool = await self._beat()
        if known and not self._coordinator._rejoin_needed_fut.done():
            self._known = sent
        return known
