"""The demo's own consumer of the stream CEREMONY. It counts events without asking the engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bridge.nats.connection import NatsConnection, swallowed_cancel
from bridge.nats.streams import CEREMONY, CEREMONY_SUBJECTS
from ports.clock import Clock

TERMINAL = {
    "ceremony.completed": "completed",
    "ceremony.failed": "failed",
    "ceremony.cancelled": "cancelled",
    "ceremony.timed_out": "timed_out",
}
STARTED = "ceremony.started"
STEP_EXECUTED = "ceremony.step.executed"
MESSAGE_ID = "Nats-Msg-Id"
BATCH = 500
WAIT_SECONDS = 0.2
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Seen:
    """One message of the stream."""

    sequence: int
    subject: str
    message_id: str
    at_ms: float
    """When JetStream stored it."""
    envelope: dict[str, Any]

    @property
    def correlation_id(self) -> str:
        return str(self.envelope.get("correlation_id", ""))

    @property
    def payload(self) -> dict[str, Any]:
        found = self.envelope.get("payload")
        return found if isinstance(found, dict) else {}


@dataclass(slots=True)
class Tally:
    """Counts of one run. Messages of other runs are only counted in `foreign` and checked for repeated ids."""

    run_id: str
    """Prefix of the correlation ids of this run."""
    events: Counter[str] = field(default_factory=Counter)
    """By subject."""
    foreign: int = 0
    started: dict[str, float] = field(default_factory=dict)
    """Instance id to the time of its `ceremony.started`, in milliseconds."""
    ended: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """Instance id to its ends, each with its time; more than one is an error."""
    steps: Counter[str] = field(default_factory=Counter)
    """Instance id to the number of its `ceremony.step.executed`."""
    waiting: dict[str, set[str]] = field(default_factory=dict)
    """Instance id to the gates that are open."""
    repeated: list[str] = field(default_factory=list)
    """Message ids that came twice."""
    last_sequence: int = 0
    _ids: set[str] = field(default_factory=set)

    def add(self, seen: Seen) -> None:
        self.last_sequence = seen.sequence
        if seen.message_id in self._ids:
            self.repeated.append(seen.message_id)
        self._ids.add(seen.message_id)
        instance_id = seen.correlation_id
        if not instance_id.startswith(self.run_id):
            self.foreign += 1
            return
        self.events[seen.subject] += 1
        if seen.subject == STARTED:
            self.started[instance_id] = seen.at_ms
        elif seen.subject == STEP_EXECUTED:
            self.steps[instance_id] += 1
        elif seen.subject in TERMINAL:
            self.ended.setdefault(instance_id, []).append((TERMINAL[seen.subject], seen.at_ms))
            self.waiting.pop(instance_id, None)
        elif seen.subject == "ceremony.gate.opened":
            self.waiting.setdefault(instance_id, set()).add(str(seen.payload.get("step_id")))
        elif seen.subject == "ceremony.gate.decided":
            self.waiting.pop(instance_id, None)

    def ended_as(self, kind: str) -> int:
        return sum(1 for ends in self.ended.values() if ends[0][0] == kind)

    @property
    def total(self) -> int:
        return self.events.total()


class StreamReader:
    """Reads the stream from its first message and delivers each message once, in order."""

    def __init__(self, connection: NatsConnection, clock: Clock, on_message: Callable[[Seen], None]) -> None:
        self._connection = connection
        self._clock = clock
        self._on_message = on_message
        self._last = 0

    async def run(self) -> None:
        """Read until cancelled. Raises nats' errors when the stream is gone."""
        jetstream = await self._connection.jetstream()
        subscription = await jetstream.pull_subscribe(CEREMONY_SUBJECTS, stream=CEREMONY)
        while not swallowed_cancel():
            with suppress(TimeoutError):
                for message in await subscription.fetch(BATCH, timeout=WAIT_SECONDS):
                    self._take(message)
                    await message.ack()

    async def caught_up(self) -> None:
        """Return when every message that the stream holds now has been delivered."""
        jetstream = await self._connection.jetstream()
        last = (await jetstream.stream_info(CEREMONY)).state.last_seq
        while self._last < last:
            await self._clock.sleep(WAIT_SECONDS)

    def _take(self, message: Any) -> None:
        sequence = message.metadata.sequence.stream
        if sequence <= self._last:
            return  # delivered again after a late acknowledgement: it is the same message
        self._last = sequence
        try:
            envelope = json.loads(message.data)
        except ValueError:
            envelope = {}
        self._on_message(
            Seen(
                sequence=sequence,
                subject=message.subject,
                message_id=(message.headers or {}).get(MESSAGE_ID, f"none, sequence {sequence}"),
                at_ms=(message.metadata.timestamp - EPOCH).total_seconds() * 1000,
                envelope=envelope if isinstance(envelope, dict) else {},
            )
        )
