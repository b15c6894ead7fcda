"""A pull consumer that hands over each message when it comes; nats-py's `fetch(n)` waits until n are there.

Pull requests are renewed before the last one is used up, so that neither a lone message waits nor a flood stalls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.nats.connection import NatsConnection
from ports.clock import Clock
from ports.errors import CeremonyError

EXPIRES_SECONDS = 5.0
"""A pull request is answered by then, if only with its end."""
SILENCE_SECONDS = 3 * EXPIRES_SECONDS
LOOK_SECONDS = 0.5
HEARTBEAT, CONFLICT, NO_RESPONDERS = "100", "409", "503"
LASTING_CONFLICTS = ("Consumer Deleted", "Consumer is push based")


class PullBroken(CeremonyError):
    """The durable is gone, the connection was renewed, or the durable was silent for too long: subscribe again."""

    def __init__(self, message: str, durable: str) -> None:
        super().__init__("pull_broken", message, place=durable, remedy="pull anew")


class Puller:
    """Pulls from one durable. `handle` is awaited for each message; while it waits, no more are taken."""

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
        self._most = credit
        self._handle = handle
        self._credit = 0
        self._broken = ""
        self._heard = 0.0
        self._stopping = False
        self._client: Client | None = None
        self._inbox = ""

    async def run(self) -> None:
        """Pull until `stop`. Raises PullBroken; what was not acknowledged comes again."""
        client = await self._connection.connected()
        self._client = client
        generation = self._connection.generation
        self._inbox = client.new_inbox()
        # Bounded by the credit.
        subscription = await client.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        try:
            self._heard = self._clock.monotonic()
            await self._ask()
            while not self._stopping:
                await self._clock.sleep(LOOK_SECONDS)
                if not self._connection.is_connected:
                    self._heard = self._clock.monotonic()
                if self._clock.monotonic() - self._heard > SILENCE_SECONDS:
                    self._broken = "nothing was heard of the durable"
                if self._connection.generation != generation:
                    self._broken = "the connection was renewed"
                if self._broken:
                    raise PullBroken(self._broken, self._durable)
        finally:
            self._client = None
            if self._connection.is_connected:
                # Gives back the pull request, and lets `handle` see what has come already.
                await subscription.drain()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Take no more; `run` returns within half a second."""
        self._stopping = True

    async def _on_message(self, message: Msg) -> None:
        self._heard = self._clock.monotonic()
        status = (message.headers or {}).get("Status") if not message.data else None
        if status is None:
            self._credit -= 1
            await self._handle(message)
        elif status != HEARTBEAT:
            self._ended(status, message)
        await self._ask()

    def _ended(self, status: str, message: Msg) -> None:
        """A pull request ended before it was used up."""
        headers = message.headers or {}
        self._credit -= int(headers.get("Nats-Pending-Messages") or self._credit)
        text = headers.get("Description", "")
        if status == NO_RESPONDERS or (status == CONFLICT and text.startswith(LASTING_CONFLICTS)):
            self._broken = text or "the durable is gone"

    async def _ask(self) -> None:
        client = self._client
        if client is None or self._stopping or self._broken or self._credit > self._most // 2:
            return
        more = self._most - self._credit
        self._credit = self._most
        request = {"batch": more, "expires": int(EXPIRES_SECONDS * 1e9)}
        await client.publish(self._next, msgspec.json.encode(request), reply=self._inbox)
