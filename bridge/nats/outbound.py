"""The Outbound port on JetStream: sends the messages of publish steps, and waits for each acknowledgement.

A stream that does not take a message is named, with the server's reason, in the step's error and in the state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import nats.errors
from nats.js.api import StreamConfig

from bridge.nats.client import FencedClient
from bridge.nats.connection import NatsConnection
from bridge.nats.headers import header_lines, read_lines
from bridge.nats.publish import MESSAGE_ID, Answer, JetStreamPublisher, refusal
from bridge.nats.streams import (
    CEREMONY_SUBJECTS,
    NO_ACK,
    NO_ANSWER,
    ensure_ceremony_stream,
    stream_of,
)
from bridge.nats.trouble import Trouble
from ports.clock import Clock
from ports.errors import Unreachable
from ports.outbound import Published, PublishRefused
from ports.provenance import NOWHERE, Provenance
from streams.envelope import envelope

NEIGHBOUR = "nats"
PUBLISH_TIMEOUT_SECONDS = 5.0
# Deadline of the look-up of a stream, whose name is only for people.
LOOK_UP_SECONDS = 2.0
# A step asks again after 30 s at most; a message not sent again for longer waits no more, or at another worker.
KEPT_SECONDS = 120.0
# Seconds for which the stream of a subject is not looked up again, and subjects that are kept.
LOOKED_UP_SECONDS, MOST_SUBJECTS = 10.0, 1000


class NatsOutbound:
    """Implements `ports.outbound.Outbound`. Calls may overlap; each has a deadline."""

    def __init__(
        self, connection: NatsConnection, clock: Clock, *, timeout_seconds: float = PUBLISH_TIMEOUT_SECONDS
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._timeout = timeout_seconds
        self._publisher = JetStreamPublisher(connection)
        self._refusals = Trouble(clock, "messages of publish steps", kept_seconds=KEPT_SECONDS)
        self._streams: dict[str, tuple[StreamConfig | None, float]] = {}
        """By subject: the stream that takes it, and the monotonic time of the look-up."""

    @property
    def state(self) -> str:
        """For readiness: `ok`, or each stream that refuses a message of a publish step."""
        return self._refusals.state

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
        at = int(self._clock.wall() * 1000)
        data = envelope(event_type, payload, key, correlation_id, at, causation_id)
        headers = {MESSAGE_ID: key, **read_lines(header_lines(provenance))}
        return await self._publish(subject, data, key, headers)

    async def _publish(self, subject: str, data: bytes, key: str, headers: dict[str, str]) -> Published:
        if not self._connection.is_connected:
            raise Unreachable(NEIGHBOUR, "not connected")
        try:
            async with self._clock.timeout(self._timeout):
                client = await self._publisher.client()
                if refused := refusal(client, subject, data, headers):
                    raise PublishRefused(refused.code, refused.message)
                answer = await self._send(client, subject, data, headers)
            async with self._clock.timeout(self._timeout):
                return await self._published(answer, subject, key)
        except TimeoutError:
            raise await self._unacknowledged(subject, key) from None
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

    async def _published(self, answer: Answer, subject: str, key: str) -> Published:
        if isinstance(answer, Published):
            self._refusals.end(key)
            return answer
        if answer.code == "no_stream":
            raise await self._without_stream(subject, key)
        found = await self._stream(subject)
        if answer.final:
            self._refusals.end(key)
            raise PublishRefused(answer.code, f"{answer.message} (stream {found.name})" if found else answer.message)
        raise self._noted(key, f"{_named(found, subject)} does not take a message: {answer.message}")

    async def _without_stream(self, subject: str, key: str) -> PublishRefused | Unreachable:
        """The error of a message that no stream takes: final, unless one is made or JetStream is starting."""
        jetstream = await self._connection.jetstream()
        state = await ensure_ceremony_stream(self._connection)
        if state.startswith(NO_ANSWER):
            return Unreachable(NEIGHBOUR, state)
        if found := await stream_of(jetstream, subject):
            return self._noted(key, f"{_named(found, subject)} does not answer: it is new, or has no leader")
        if state != "ok" and subject.startswith(CEREMONY_SUBJECTS.removesuffix(">")):
            return self._noted(key, state)
        self._refusals.end(key)
        message = f"no stream takes the subject {subject}: make one, or publish to another subject"
        return PublishRefused("no_stream", message)

    async def _unacknowledged(self, subject: str, key: str) -> Unreachable:
        late = f"no acknowledgement within {self._timeout:g} s"
        found = await self._stream(subject)
        if found is None:
            return Unreachable(NEIGHBOUR, late)
        return self._noted(
            key, f"{_named(found, subject)} {NO_ACK}" if found.no_ack else f"stream {found.name}: {late}"
        )

    def _noted(self, key: str, reason: str) -> Unreachable:
        self._refusals.note(key, reason, 1)
        return Unreachable(NEIGHBOUR, reason)

    async def _stream(self, subject: str) -> StreamConfig | None:
        """Return the stream that takes the subject; None if there is none, or JetStream does not say."""
        found, looked_up_at = self._streams.get(subject, (None, -LOOKED_UP_SECONDS))
        if not self._connection.is_connected or self._clock.monotonic() - looked_up_at < LOOKED_UP_SECONDS:
            return found
        try:
            async with self._clock.timeout(LOOK_UP_SECONDS):
                found = await stream_of(await self._connection.jetstream(), subject)
        except (nats.errors.Error, OSError, TimeoutError):
            return None
        if len(self._streams) >= MOST_SUBJECTS:
            self._streams.clear()
        self._streams[subject] = found, self._clock.monotonic()
        return found


def _named(found: StreamConfig | None, subject: str) -> str:
    return f"the stream of {subject}" if found is None else f"stream {found.name}"
