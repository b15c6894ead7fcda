"""Rules on single messages and on the stream as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.checker.recording import Message
from tests.checker.violations import Violation

MANDATORY = ("event_type", "payload", "idempotency_key", "correlation_id", "timestamp", "producer", "metadata")
STRINGS = ("event_type", "idempotency_key", "correlation_id", "timestamp", "producer")
STATUS = {
    "ceremony.completed": "COMPLETED",
    "ceremony.failed": "FAILED",
    "ceremony.cancelled": "CANCELLED",
    "ceremony.timed_out": "TIMED_OUT",
    "ceremony.paused": "PAUSED",
}
ENDS = frozenset(STATUS) - {"ceremony.paused"}
# Subjects whose key is an effect id.
OF_CEREMONIES = frozenset(
    {
        *STATUS,
        "ceremony.started",
        "ceremony.resumed",
        "ceremony.gate.opened",
        "ceremony.gate.decided",
        "ceremony.step.executed",
        "ceremony.step.retrying",
        "ceremony.step.ordered",
        "ceremony.transition.applied",
        "ceremony.publish.requested",
        "ceremony.publish.completed",
    }
)
OTHERS = frozenset({"ceremony.start.refused", "ceremony.deadletter", "ceremony.dualwrite.reconcile.requested"})
OWN = re.compile(r"ceremony\.(step|transition|publish|dualwrite|gate|start)\..+")
EFFECT_ID = re.compile(r"(?P<instance>[^/]+)/(?P<version>[0-9]+)/(?P<ordinal>[0-9]+)@(?P<fold>[0-9]+)")
PUBLISH_KEY = re.compile(r"publish/(?P<instance>[^/]+)/(?P<step>[^/]+)/(?P<visit>[0-9]+)")


@dataclass(frozen=True, slots=True)
class Event:
    """A message with a readable envelope."""

    sequence: int
    subject: str
    instance_id: str
    key: str
    correlation_id: str
    payload: dict[str, Any]
    version: int = 0
    """0 for a message of a publish step."""
    ordinal: int = 0

    @property
    def publication(self) -> bool:
        return not self.version


def message_violations(message: Message) -> Iterator[Violation]:
    """The violations of a single message."""
    envelope, found = message.envelope, _Finder(message)
    if not isinstance(envelope, dict):
        yield found("not_json", "the message is no JSON object")
        return
    yield from _of_fields(envelope, found)
    if envelope.get("producer", "ceremony-engine") != "ceremony-engine":
        yield found("producer_wrong", f"producer is {envelope['producer']!r}")
    if not _is_timestamp(envelope.get("timestamp")):
        yield found("timestamp_invalid", f"timestamp is {envelope.get('timestamp')!r}")
    if message.message_id != envelope.get("idempotency_key"):
        yield found("message_id_differs", f"Nats-Msg-Id is {message.message_id!r}")
    yield from _of_subject(message, envelope, found)


def _of_fields(envelope: dict[str, Any], found: _Finder) -> Iterator[Violation]:
    for name in MANDATORY:
        if name not in envelope:
            yield found("field_missing", f"`{name}` is missing")
    for name in sorted(set(envelope) - {*MANDATORY, "causation_id"}):
        yield found("field_unknown", f"`{name}` is no field of the envelope")
    for name in STRINGS:
        if name in envelope and not (isinstance(envelope[name], str) and envelope[name].strip()):
            yield found("field_empty", f"`{name}` is no string, or empty")
    for name in ("payload", "metadata"):
        if name in envelope and not isinstance(envelope[name], dict):
            yield found("field_empty", f"`{name}` is no object")


def _of_subject(message: Message, envelope: dict[str, Any], found: _Finder) -> Iterator[Violation]:
    subject = message.subject
    if subject not in OF_CEREMONIES | OTHERS:
        if OWN.fullmatch(subject):
            yield found("subject_unknown", f"{subject} is no subject of the contract")
        elif not PUBLISH_KEY.fullmatch(str(envelope.get("idempotency_key"))):
            yield found("key_malformed", "the key of a publish step's message is publish/<instance>/<step>/<visit>")
        return
    if envelope.get("event_type") != subject:
        yield found("event_type_wrong", f"event_type is {envelope.get('event_type')!r}")
    payload = envelope.get("payload")
    if subject in OF_CEREMONIES and isinstance(payload, dict):
        effect = EFFECT_ID.fullmatch(str(envelope.get("idempotency_key")))
        if effect is None or effect["instance"] != payload.get("instance_id"):
            yield found("key_malformed", f"{envelope.get('idempotency_key')!r} is no effect id of this instance")
    if subject in STATUS and isinstance(payload, dict) and payload.get("status") != STATUS[subject]:
        yield found("status_wrong", f"{subject} carries the status {payload.get('status')!r}")


def stream_violations(messages: Sequence[Message]) -> Iterator[Violation]:
    """The violations between messages, apart from their content."""
    ids: dict[str, Message] = {}
    keys: dict[str, Message] = {}
    for before, message in zip([None, *messages], messages, strict=False):
        found = _Finder(message)
        if before is not None and message.sequence != before.sequence + 1:
            yield found("stream_gap", f"it follows sequence {before.sequence}")
        if message.message_id and (other := ids.setdefault(message.message_id, message)) is not message:
            yield found("message_id_twice", f"{message.message_id} is on {other.subject}@{other.sequence} already")
        key = message.envelope.get("idempotency_key") if isinstance(message.envelope, dict) else None
        if key and (other := keys.setdefault(str(key), message)) is not message:
            yield found("key_twice", f"{key} is on {other.subject}@{other.sequence} already")


def event_of(message: Message) -> Event | None:
    """The message as an event of a ceremony or a refused start; None for others and for unreadable ones."""
    envelope = message.envelope
    if not isinstance(envelope, dict) or not isinstance(envelope.get("payload"), dict):
        return None
    key, payload = str(envelope.get("idempotency_key")), envelope["payload"]
    correlation = str(envelope.get("correlation_id") or "")
    if message.subject in OF_CEREMONIES and (effect := EFFECT_ID.fullmatch(key)):
        version, ordinal = int(effect["version"]), int(effect["ordinal"])
        return Event(message.sequence, message.subject, effect["instance"], key, correlation, payload, version, ordinal)
    if published := PUBLISH_KEY.fullmatch(key):
        return Event(message.sequence, message.subject, published["instance"], key, correlation, payload)
    if message.subject == "ceremony.start.refused":
        return Event(message.sequence, message.subject, str(payload.get("instance_id")), key, correlation, payload)
    return None


class _Finder:
    """A function that makes violations of one message."""

    def __init__(self, message: Message) -> None:
        self._sequence = message.sequence
        event = event_of(message)
        self._instance = event.instance_id if event else ""

    def __call__(self, rule: str, text: str) -> Violation:
        return Violation(rule, self._instance, self._sequence, text)


def _is_timestamp(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False
