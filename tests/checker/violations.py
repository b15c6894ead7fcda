"""The rules of the checker, by name, and violations of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One rule broken at one place."""

    rule: str
    """Stable name, snake_case; see `RULES`."""
    instance_id: str
    """Empty if it is about the stream as a whole."""
    sequence: int
    """Sequence of the message; 0 if it is about the whole run."""
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
    "subject_unknown": "every subject of the engine is one of the specification",
    "event_type_wrong": "the event type of an engine's event is its subject",
    "message_id_differs": "Nats-Msg-Id is the idempotency key",
    "key_malformed": "an event's key is an effect id of its instance",
    "status_wrong": "a lifecycle event has the status of its subject",
    # the stream
    "message_id_twice": "no two messages share a Nats-Msg-Id",
    "key_twice": "each idempotency key appears once",
    "stream_gap": "no sequence is missing between the first message and the last",
    # one ceremony
    "order_broken": "version and ordinal of the effect ids rise along the stream",
    "correlation_differs": "all messages of a ceremony have its one correlation id",
    "not_begun": "the first event of a ceremony is ceremony.started",
    "started_twice": "ceremony.started comes once",
    "definition_unknown": "the definition is one of the given ones",
    "transition_unknown": "a transition is one of the definition's",
    "path_broken": "a transition leaves the state that the one before it entered",
    "step_unknown": "a step is one of the definition's",
    "step_outside_state": "a step is executed in its state, and its event names that state",
    "step_concluded_twice": "an attempt is concluded once",
    "attempt_fell": "the attempts of a step rise",
    "gate_not_opened": "a gate is decided after it was opened",
    "publish_not_requested": "publish.completed follows publish.requested",
    "publish_message_lost": "the message that publish.completed names is on the stream, before it",
    "completed_outside_terminal": "ceremony.completed comes in a terminal state",
    "end_lost": "a ceremony that reached a terminal state, or has ended for the service, has its terminal event",
    "two_ends": "there is one terminal event",
    "event_after_end": "only a late publish, or the retry of a FAILED ceremony, follows the end",
    # the service
    "start_lost": "every accepted start has a first event, or was refused by an event",
    "instance_missing": "the service knows every started ceremony",
    "stuck": "a ceremony that has not ended waits visibly",
    "state_differs": "the path ends in the state that the service shows",
    "status_differs": "the last event has the status that the service shows",
    "step_status_differs": "the last result of a step is the status that the service shows",
    "version_behind": "the service's version is not behind that of the last event",
    # the read models
    "store_missing": "each store has every instance that the service shows",
    "store_stray": "no store has another instance",
    "store_differs": "an instance in a store equals that of the service",
    "store_index_differs": "sets, keys and relations of a store lead to the instance",
}
