"""What the checker may find: one rule, one name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One rule broken at one place."""

    rule: str
    """Stable name, snake_case; see `RULES`."""
    instance_id: str
    """Empty where it is about the stream as a whole."""
    sequence: int
    """Of the message; 0 where it is about the whole run."""
    message: str

    def __str__(self) -> str:
        where = f"{self.instance_id or 'stream'}@{self.sequence}" if self.sequence else self.instance_id or "stream"
        return f"{self.rule}: {where}: {self.message}"


RULES = {
    # one message
    "not_json": "every message is JSON",
    "field_missing": "the envelope has every mandatory field",
    "field_unknown": "the envelope has no other field",
    "field_empty": "the envelope's strings are not empty, its payload and metadata are objects",
    "producer_wrong": "the producer is ceremony-engine",
    "timestamp_invalid": "the timestamp is ISO-8601 with a zone",
    "subject_unknown": "no subject of the engine's own that the contract does not name",
    "event_type_wrong": "the event type of an engine's event is its subject",
    "message_id_differs": "Nats-Msg-Id is the idempotency key",
    "key_malformed": "an event's key is an effect id of the instance it speaks of",
    "status_wrong": "a lifecycle event carries the status that its subject says",
    # the stream
    "message_id_twice": "no two messages share a Nats-Msg-Id",
    "key_twice": "each idempotency key is there once",
    "stream_gap": "no sequence is missing between the first message and the last",
    # one ceremony
    "order_broken": "version and ordinal of the effect ids rise along the stream",
    "correlation_differs": "all messages of a ceremony have its one correlation id",
    "not_begun": "the first event of a ceremony is ceremony.started",
    "started_twice": "ceremony.started comes once",
    "definition_unknown": "the definition is one of those given",
    "transition_unknown": "a transition is one of the definition's",
    "path_broken": "a transition leaves the state that the one before it entered",
    "step_unknown": "a step is one of the definition's",
    "step_outside_state": "a step is executed in its state, and says so",
    "step_concluded_twice": "an attempt is concluded once",
    "attempt_fell": "the attempts of a step rise",
    "gate_not_opened": "a gate is decided after it was opened",
    "publish_not_requested": "publish.completed follows publish.requested",
    "publish_message_lost": "what publish.completed names is on the stream, before it",
    "completed_outside_terminal": "ceremony.completed comes in a terminal state",
    "end_lost": "who has come to a terminal state, or is ended for the front, has its terminal event",
    "two_ends": "there is one terminal event",
    "event_after_end": "nothing follows the end but a late publish, or the retry of what FAILED",
    # the front
    "start_lost": "every accepted start has begun, or was refused by an event",
    "instance_missing": "the front knows every ceremony that has begun",
    "stuck": "who has not ended waits visibly",
    "state_differs": "the path ends in the state that the front shows",
    "status_differs": "the last event says what the front shows",
    "step_status_differs": "the last conclusion of a step is the status that the front shows",
    "version_behind": "the front's version is not behind that of the last event",
}
