"""Judges messages of AGENT_RESPONSES, without I/O: a command, a message of another service, or a malformed message.

The subject decides the kind of a message. Task id and metadata route it; its correlation id belongs to the sender and
is never read; the one in our own metadata goes on with the command.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from ports.errors import CeremonyError
from tables.commands import NATS_ID, AgentResult

COMPLETED = "agent.response.completed"
BACKLOG_REVIEW = "agent.response.completed.backlog-review.role"
TASK_EXTRACTION = "agent.response.completed.task-extraction"
FAILED = "agent.response.failed"
# The filter subjects of the durable (specification 17.1).
SUBJECTS = (COMPLETED, BACKLOG_REVIEW, TASK_EXTRACTION, FAILED)

EXTRACTOR = "agent-task-extractor-001"
# Largest result in a command; of a larger one the command carries only the size.
LARGEST_VALUE_BYTES = 256 * 1024
# Nested containers of a message.
DEEPEST = 64
# Characters of an agent id, a role or a trigger.
LONGEST_NAME = 256
# Characters of an agent's error; the rest is cut.
LONGEST_ERROR = 4096

_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
TASK_ID = re.compile(
    rf"ceremony-(?P<ceremony>{_ID}):story-(?P<story>{_ID}):(?:role-[^:]{{1,128}}|(?P<extraction>task-extraction))"
    r":step-(?P<step>[a-z0-9_]+):attempt-(?P<attempt>[0-9]{1,9})",
    re.DOTALL,
)
INSTANCE_ID = re.compile(rf"{_ID}:{_ID}")
# Tokens of a reply subject, and the index of the sequence among them.
_TOKENS, _SEQUENCE = 9, 5
# Start of the task id of every ceremony.
TASK_PREFIX = "ceremony-"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A message that belongs to no ceremony. Other services use the same subjects; it is acknowledged and counted."""

    reason: str
    """`no_task`, `other_task`, `unroutable` or `other_kind`."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message that breaks the specification: it becomes a dead letter, and its delivery ends."""

    code: str
    message: str


class Route(NamedTuple):
    """The attempt that a message answers."""

    instance_id: str
    step_id: str
    attempt: int
    extraction: bool | None
    """True for an extraction; None when only metadata routed the message."""
    task_id: str


class _BreaksContract(CeremonyError):
    """Raised inside this module; `to_command` returns it as `Malformed`."""


class _ResponseEnvelope(msgspec.Struct):
    """The envelope, without its optional fields."""

    event_type: str
    payload: dict[str, Any]
    idempotency_key: str
    correlation_id: str
    timestamp: str
    producer: str
    metadata: dict[str, Any] = {}


_decode_envelope = msgspec.json.Decoder(_ResponseEnvelope).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def to_command(subject: str, data: bytes, stream: str, sequence: int) -> AgentResult | Foreign | Malformed:
    """Judge one message. Never raises. The command id is the same at each redelivery."""
    try:
        payload = _payload(data)
        route = _route(subject, payload)
        if isinstance(route, Foreign):
            return route
        return _command(subject, payload, route, stream, sequence)
    except _BreaksContract as error:
        return Malformed(error.code, error.message)


def _payload(data: bytes) -> dict[str, Any]:
    try:
        envelope = _decode_envelope(data)
    except msgspec.ValidationError as error:
        raise _BreaksContract("envelope_invalid", f"not the envelope of the contract: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _BreaksContract("message_undecodable", "the message is no UTF-8 JSON") from None
    except RecursionError:
        raise _BreaksContract("message_too_deep", f"deeper than {DEEPEST} nested containers") from None
    for name in ("event_type", "idempotency_key", "correlation_id", "timestamp", "producer"):
        if not getattr(envelope, name).strip():
            raise _BreaksContract("envelope_invalid", f"`{name}` is empty: a non-empty string is wanted")
    # The envelope is one container, its payload the second. With few opening brackets no container can be too deep.
    opened = data.count(b"{") + data.count(b"[")
    if opened > DEEPEST and _deeper_than(envelope.payload, DEEPEST - 1):
        raise _BreaksContract("message_too_deep", f"deeper than {DEEPEST} nested containers")
    return envelope.payload


def _deeper_than(value: Any, limit: int) -> bool:
    """Return whether containers nest deeper than `limit`, counting the outermost."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _route(subject: str, payload: dict[str, Any]) -> Route | Foreign:
    task_ids = [found for found in _task_ids(subject, payload) if isinstance(found, str) and found]
    if not task_ids:
        return _by_metadata(payload, "") or Foreign("no_task")
    for task_id in task_ids:
        if match := TASK_ID.fullmatch(task_id):
            extraction = match["extraction"] is not None
            if not _has_failed(subject, payload) and extraction != (subject == TASK_EXTRACTION):
                # The unchecked answer of an extractor arrives on another subject.
                return Foreign("other_kind")
            instance_id = f"{match['ceremony']}:{match['story']}"
            return Route(instance_id, match["step"], int(match["attempt"]), extraction, task_id)
    ceremony_tasks = [task_id for task_id in task_ids if task_id.startswith(TASK_PREFIX)]
    if not ceremony_tasks:
        return Foreign("other_task")
    return _by_metadata(payload, ceremony_tasks[0]) or Foreign("unroutable")


def _task_ids(subject: str, payload: dict[str, Any]) -> Iterator[Any]:
    """Candidates for the task id, the most trusted first (specification 17.3)."""
    metadata = [found.get("task_id") for found in _metadata(payload)]
    own = payload.get("task_id")
    yield from (*metadata, own) if subject == FAILED else (own, *metadata)


def _metadata(payload: dict[str, Any]) -> list[Mapping[str, Any]]:
    constraints = payload.get("constraints")
    inner = constraints.get("metadata") if isinstance(constraints, dict) else None
    return [found for found in (inner, payload.get("metadata")) if isinstance(found, dict)]


def _by_metadata(payload: dict[str, Any], task_id: str) -> Route | None:
    """The attempt named by metadata, for senders that shorten task ids."""
    for metadata in _metadata(payload):
        instance_id, step_id, attempt = (str(metadata.get(name, "")) for name in ("instance_id", "step_id", "attempt"))
        if INSTANCE_ID.fullmatch(instance_id) and step_id and attempt.isdecimal() and len(attempt) <= len("999999999"):
            return Route(instance_id, step_id[:LONGEST_NAME], int(attempt), None, task_id)
    return None


def _command(subject: str, payload: dict[str, Any], route: Route, stream: str, sequence: int) -> AgentResult:
    extraction = subject == TASK_EXTRACTION or bool(route.extraction)
    agent_id = EXTRACTOR if extraction else _name(payload, "agent_id")
    if not agent_id:
        raise _BreaksContract("agent_id_missing", "payload.agent_id is missing: which agent answered?")
    code, text = _failure(subject, payload)
    value, size = None, 0
    if not code:
        value = payload.get("tasks" if extraction else "proposal")
        code, text = _value_problem(value, extraction=extraction)
    if not code:
        value, size = _with_size(value)
    return AgentResult(
        instance_id=route.instance_id,
        command_id=command_id(route.task_id, agent_id, stream, sequence),
        step_id=route.step_id,
        attempt=route.attempt,
        agent_id=agent_id,
        role="TASK_EXTRACTOR" if extraction else _name(payload, "role"),
        value=None if code else value,
        size=size,
        error_code=code,
        error_message=text,
        trigger=_name(payload, "trigger"),
        correlation_id=_correlation_id(payload),
    )


def _correlation_id(payload: dict[str, Any]) -> str:
    """The correlation id in the task's metadata, which is ours and comes back; empty without a sound one."""
    for metadata in _metadata(payload):
        found = metadata.get("correlation_id")
        if isinstance(found, str) and found.strip() and len(found) <= LONGEST_NAME:
            return found
    return ""


def stream_sequence(reply: str) -> int:
    """The stream sequence in a message's reply subject. nats-py would parse the whole subject, including its time.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>…`; newer servers put domain and account before the stream.
    """
    tokens = reply.split(".")
    return int(tokens[_SEQUENCE if len(tokens) == _TOKENS else _SEQUENCE + 2])


def command_id(task_id: str, agent_id: str, stream: str, sequence: int) -> str:
    """Derived from task id and agent id, else from stream and sequence; short, because a row keeps the last 64."""
    if not task_id:
        return f"{NATS_ID}{stream}/{sequence}"
    return NATS_ID + hashlib.blake2b(f"{task_id}\0{agent_id}".encode(), digest_size=15).hexdigest()


def _name(payload: dict[str, Any], key: str) -> str:
    value = payload.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise _BreaksContract("payload_invalid", f"payload.{key} is not a string of at most {LONGEST_NAME} characters")
    return value


def _has_failed(subject: str, payload: dict[str, Any]) -> bool:
    return subject == FAILED or payload.get("status") == "failed"


def _failure(subject: str, payload: dict[str, Any]) -> tuple[str, str]:
    """Stable code and text when the agent reports a failure, else two empty strings."""
    if not _has_failed(subject, payload):
        return "", ""
    kind = payload.get("error_type")
    words = [part for part in (kind, payload.get("error")) if isinstance(part, str) and part]
    return "agent_failed", ": ".join(words)[:LONGEST_ERROR] or "the agent failed without a reason"


def _value_problem(value: Any, *, extraction: bool) -> tuple[str, str]:
    if extraction:
        return ("", "") if isinstance(value, list) else ("tasks_malformed", "payload.tasks is not a list")
    if value is None:
        return "proposal_missing", "the agent completed without a proposal"
    return (
        ("", "")
        if isinstance(value, str | dict)
        else ("proposal_malformed", "the proposal is neither a string nor an object")
    )


def _with_size(value: Any) -> tuple[Any, int]:
    """The value and its encoded size in bytes; a value above the limit is left out."""
    size = len(_encode(value))
    return (value, size) if size <= LARGEST_VALUE_BYTES else (None, size)
