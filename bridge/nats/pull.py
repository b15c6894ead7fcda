"""A pull consumer that handles each message on arrival; nats-py's `fetch(n)` would wait for n messages.

It renews a pull request before the last one is used up, so that a single message does not wait and a flood does not
stall.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.nats.connection import NatsConnection
from ports.clock import Clock
from ports.errors import CeremonyError

# The server answers a pull request within this time, at least with its end.
EXPIRES_SECONDS = 5.0
SILENCE_SECONDS = 3 * EXPIRES_SECONDS
CHECK_SECONDS = 0.5
HEARTBEAT, CONFLICT, NO_RESPONDERS = "100", "409", "503"
LASTING_CONFLICTS = ("Consumer Deleted", "Consumer is push based")


class PullBroken(CeremonyError):
    """The durable is gone, the connection was renewed, or the durable was silent for too long: subscribe again."""

    def __init__(self, message: str, durable: str) -> None:
        super().__init__("pull_broken", message, place=durable, remedy="pull anew")


class Puller:
    """Pulls from one durable. Awaits `handle` for each message, and takes no other message meanwhile."""

    def __init__(
        self,
        connection: NatsConnection,
        clock: Clock,
        *,
        stream: str,
        durable: str,
        credit: int,
        handle: Callable[[Msg], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._durable = durable
        self._max_credit = credit
        self._handle = handle
        self._credit = 0
        self._broken = ""
        self._last_message = 0.0
        self._stopping = False
        self._client: Client | None = None
        self._inbox = ""

    async def run(self) -> None:
        """Pull until `stop`. Raises PullBroken; unacknowledged messages are delivered again."""
        client = await self._connection.connected()
        self._client = client
        generation = self._connection.generation
        self._inbox = client.new_inbox()
        # The credit bounds the pending messages.
        subscription = await client.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        try:
            self._last_message = self._clock.monotonic()
            await self._request_more()
            while not self._stopping:
                await self._clock.sleep(CHECK_SECONDS)
                if not self._connection.is_connected:
                    self._last_message = self._clock.monotonic()
                if self._clock.monotonic() - self._last_message > SILENCE_SECONDS:
                    self._broken = "nothing was heard of the durable"
                if self._connection.generation != generation:
                    self._broken = "the connection was renewed"
                if self._broken:
                    raise PullBroken(self._broken, self._durable)
        finally:
            self._client = None
            if self._connection.is_connected:
                # Gives back the pull request, and lets `handle` take the messages that have arrived.
                await subscription.drain()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Take no more messages; `run` returns within half a second."""
        self._stopping = True

    async def _on_message(self, message: Msg) -> None:
        self._last_message = self._clock.monotonic()
        status = (message.headers or {}).get("Status") if not message.data else None
        if status is None:
            self._credit -= 1
            await self._handle(message)
        elif status != HEARTBEAT:
            self._request_ended(status, message)
        await self._request_more()

    def _request_ended(self, status: str, message: Msg) -> None:
        """Handle the end of a pull request that was not used up."""
        headers = message.headers or {}
        self._credit -= int(headers.get("Nats-Pending-Messages") or self._credit)
        text = headers.get("Description", "")
        if status == NO_RESPONDERS or (status == CONFLICT and text.startswith(LASTING_CONFLICTS)):
            self._broken = text or "the durable is gone"

    async def _request_more(self) -> None:
        client = self._client
        if client is None or self._stopping or self._broken or self._credit > self._max_credit // 2:
            return
        more = self._max_credit - self._credit
        self._credit = self._max_credit
        request = {"batch": more, "expires": int(EXPIRES_SECONDS * 1e9)}
        await client.publish(self._next, msgspec.json.encode(request), reply=self._inbox)
