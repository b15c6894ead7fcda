"""The Outbound port on JetStream: sends the messages of publish steps, and waits for each acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import nats.errors
from nats.js.errors import NotFoundError

from bridge.nats.client import FencedClient
from bridge.nats.connection import NatsConnection
from bridge.nats.publish import MESSAGE_ID, Answer, JetStreamPublisher, refusal
from bridge.nats.streams import NO_ANSWER, ensure_ceremony_stream
from ports.clock import Clock
from ports.errors import Unreachable
from ports.outbound import Published, PublishRefused
from streams.envelope import envelope

NEIGHBOUR = "nats"
PUBLISH_TIMEOUT_SECONDS = 5.0


class NatsOutbound:
    """Implements `ports.outbound.Outbound`. Calls may overlap; each has a deadline."""

    def __init__(
        self, connection: NatsConnection, clock: Clock, *, timeout_seconds: float = PUBLISH_TIMEOUT_SECONDS
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._timeout = timeout_seconds
        self._publisher = JetStreamPublisher(connection)

    async def publish(
        self,
        subject: str,
        event_type: str,
        payload: Mapping[str, Any],
        *,
        key: str,
        correlation_id: str,
        causation_id: str | None = None,
    ) -> Published:
        at = int(self._clock.wall() * 1000)
        data = envelope(event_type, payload, key, correlation_id, at, causation_id)
        return await self.publish_raw(subject, data, key=key, correlation_id=correlation_id)

    async def publish_raw(
        self, subject: str, envelope: bytes, *, key: str, correlation_id: str, headers: Mapping[str, str] | None = None
    ) -> Published:
        if not self._connection.is_connected:
            raise Unreachable(NEIGHBOUR, "not connected")
        all_headers = {**(headers or {}), MESSAGE_ID: key}
        try:
            async with self._clock.timeout(self._timeout):
                client = await self._publisher.client()
                if refused := refusal(client, subject, envelope, all_headers):
                    raise PublishRefused(refused.code, refused.message)
                return await self._published(await self._send(client, subject, envelope, all_headers), subject)
        except TimeoutError:
            raise Unreachable(NEIGHBOUR, f"no acknowledgement within {self._timeout:g} s") from None
        except (nats.errors.Error, OSError):
            raise Unreachable(NEIGHBOUR, "the connection broke") from None

    async def _send(self, client: FencedClient, subject: str, data: bytes, headers: dict[str, str]) -> Answer:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def on_answer(_: int, answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        tokens = self._publisher.expect(on_answer)
        try:
            await self._publisher.send(client, tokens[0], subject, data, headers)
            return await answered
        finally:
            self._publisher.forget(tokens)

    async def _published(self, answer: Answer, subject: str) -> Published:
        if isinstance(answer, Published):
            return answer
        if answer.final:
            raise PublishRefused(answer.code, answer.message)
        if answer.code == "no_stream" and not await self._has_stream(subject):
            raise PublishRefused(
                "no_stream", f"no stream takes the subject {subject}: make one, or publish to another subject"
            )
        raise Unreachable(NEIGHBOUR, answer.message)

    async def _has_stream(self, subject: str) -> bool:
        """Return whether a stream takes the subject, or cannot be looked up while JetStream is starting."""
        jetstream = await self._connection.jetstream()
        if (await ensure_ceremony_stream(jetstream)).startswith(NO_ANSWER):
            return True
        try:
            await jetstream.find_stream_name_by_subject(subject)
        except NotFoundError:
            return False
        return True
