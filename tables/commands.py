"""Commands: the records of the topic `commands`. Everything that happens to a ceremony begins with one.

Encoded as JSON objects tagged by `type`, with a `format` number. The record's offset and timestamp are not in the body:
they come from the log (`Origin`).
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from tables.errors import FormatTooNew, Undecodable
from tables.formats import refuse_newer

COMMAND_FORMAT = 1
# Beginnings of the ids that the engine derives by itself, from NATS, from timers and from records of the log. Clients
# may not use them, so no client's operation is taken for one of the engine's.
DERIVED_ID_PREFIXES = ("nats/", "timer/", "fold_failed/", "engine/")
NATS_ID, FOLD_FAILED_ID = DERIVED_ID_PREFIXES[0], DERIVED_ID_PREFIXES[2]
SET_ASIDE_ID = "engine/set_aside/"
_DIGEST_BYTES = 8


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Position of a command in the log, and the time of its append in milliseconds: the only clock of the fold."""

    partition: int
    offset: int
    timestamp: int


class Command(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="type", gc=False):
    """Base of all commands."""

    format: int = COMMAND_FORMAT
    instance_id: str = ""
    """Empty for PutDefinition and Noop only."""
    command_id: str = ""
    """Idempotency key: a repeated command with this id is ignored. A client waits for the answer under it."""
    expects_answer: ClassVar[bool] = False


class PutDefinition(Command, frozen=True, tag="put_definition", kw_only=True):
    """Store a definition in this partition; sent once per (partition, hash) before the Start that needs it."""

    hash: str
    text: str


class Noop(Command, frozen=True, tag="noop", kw_only=True):
    """Changes nothing. Its acknowledgement tells the partition's owner the time of the log's clock."""


class Start(Command, frozen=True, tag="start", kw_only=True):
    ceremony_id: str
    story_id: str
    definition_name: str
    definition_hash: str
    correlation_id: str
    requested_by: str
    inputs: dict[str, Any] = {}
    """Parsed values, with ceremony_id and story_id among them."""
    step_ids: tuple[str, ...] = ()
    """Each once; empty selects all."""
    inputs_size: int = 0
    """Bytes of the encoded inputs, names included."""
    traceparent: str = ""
    """W3C Trace Context of the caller; empty where it gave none."""


class StepOutcome(Command, frozen=True, tag="step_outcome", kw_only=True):
    """The outcome of one attempt, sent by the agent of the step."""

    step_id: str
    attempt: int
    outcome: str
    """completed, failed, waiting, submitted or unreachable."""
    output: Any = None
    size: int = 0
    """Bytes of the encoded output, measured by the agent."""
    error_code: str = ""
    error_message: str = ""
    retryable: bool = True
    deliberation_id: str = ""
    effect_id: str = ""
    """Id of the StepRequested that it answers."""
    published: dict[str, Any] = {}
    """Publish step: stream, sequence, duplicate."""


class AgentResult(Command, frozen=True, tag="agent_result", kw_only=True):
    """The result of one agent, as it came over NATS."""

    step_id: str
    attempt: int
    agent_id: str
    role: str = ""
    value: Any = None
    """Proposal (string or object), or the list of tasks."""
    size: int = 0
    """Bytes of the encoded value; above the limit the value is left out and the attempt fails."""
    error_code: str = ""
    """Set when the agent failed."""
    error_message: str = ""
    trigger: str = ""
    """Also requests this transition, in the role SYSTEM."""
    correlation_id: str = ""
    """From the metadata that the engine itself gave the task; empty where the message does not hold it."""


class Trigger(Command, frozen=True, tag="trigger", kw_only=True):
    expects_answer: ClassVar[bool] = True
    trigger: str
    actor: str
    role: str = ""
    reason: str = ""


class GateDecision(Command, frozen=True, tag="gate_decision", kw_only=True):
    """A decision on a gate step, or on a human guard."""

    expects_answer: ClassVar[bool] = True
    gate: str
    """Step id, or the name of a human guard."""
    approved: bool
    actor: str
    actor_key: str = ""
    """The actor's name, case-folded where it entered: a quorum counts keys. Empty in records of older releases."""
    role: str = ""
    comment: str = ""
    visit: int = 0
    """The visit of the gate's state that the sender saw; 0: the present one (then `command_id` detects repetition)."""
    names_guard: bool = False
    """The sender calls it a guard: where a gate step of a pinned definition has the same name, the guard is meant."""


class TimerFired(Command, frozen=True, tag="timer_fired", kw_only=True):
    timer_id: str
    attempt: int = 0


class Cancel(Command, frozen=True, tag="cancel", kw_only=True):
    expects_answer: ClassVar[bool] = True
    actor: str
    role: str = ""
    reason: str = ""


class Pause(Command, frozen=True, tag="pause", kw_only=True):
    expects_answer: ClassVar[bool] = True
    actor: str
    role: str = ""
    reason: str = ""
    by_engine: bool = False
    """Made by the partition's owner after the fold failed: never in the log, and no role is checked."""


class Resume(Command, frozen=True, tag="resume", kw_only=True):
    expects_answer: ClassVar[bool] = True
    actor: str
    role: str = ""
    reason: str = ""


class RetryStep(Command, frozen=True, tag="retry_step", kw_only=True):
    expects_answer: ClassVar[bool] = True
    step_id: str
    actor: str
    role: str = ""
    reason: str = ""


class RunStep(Command, frozen=True, tag="run_step", kw_only=True):
    """Run a step that the start did not select."""

    expects_answer: ClassVar[bool] = True
    step_id: str
    actor: str
    role: str = ""
    reason: str = ""


class Restore(Command, frozen=True, tag="restore", kw_only=True):
    """Bring an instance back from a read model; never overwrites a newer row."""

    instance: dict[str, Any]
    """A row as `encode_instance` writes it, with version and attempts already raised."""
    seen_version: int = 0
    """The highest version of the ceremony that any store has: a row of the table that is as new stays. 0: not named."""


class SetAside(Command, frozen=True, tag="set_aside", kw_only=True):
    """Announce that a row which no checkpoint can write was set aside; sent by the owner of its partition.

    `command_id` is made of the version that was written last, so that a second report, after a crash, is known.
    """

    status: str
    """Status of the row that took its place."""
    state: str
    version: int
    """Version of the row that the announcement makes; its effects have their ids from it."""
    code: str
    message: str


class UnreadableRow(Command, frozen=True, tag="unreadable_row", kw_only=True):
    """Report a row that cannot be read; sent by the owner of its partition at each take-over. It changes no row."""

    digest: str
    """Of the row's bytes: a second report of the same bytes is known."""
    message: str
    """What is broken."""
    row: str = ""
    """The bytes in base64; empty where they are large: the changelog has them until the ceremony is written again."""


AnyCommand = (
    PutDefinition
    | Noop
    | Start
    | StepOutcome
    | AgentResult
    | Trigger
    | GateDecision
    | TimerFired
    | Cancel
    | Pause
    | Resume
    | RetryStep
    | RunStep
    | Restore
    | SetAside
    | UnreadableRow
)


_decoder: msgspec.json.Decoder[AnyCommand] = msgspec.json.Decoder(AnyCommand)
_encoder = msgspec.json.Encoder()


def encode_command(command: AnyCommand) -> bytes:
    return _encoder.encode(command)


def content_digest(command: AnyCommand) -> str:
    """Return the digest of an operation without its id; "" for a command that no client sends under an id of its own.

    Two operations with one id are the same when their digests are equal.
    """
    if not command.expects_answer:
        return ""
    body = _encoder.encode(replace(command, command_id=""))
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).hexdigest()


def decode_command(value: bytes | None) -> AnyCommand:
    """The command in a record's value. Raises Undecodable, or FormatTooNew for a newer release's record."""
    if value is None:
        raise Undecodable("command_undecodable", "the record has no value")
    try:
        command = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refuse_newer(value, "a command", COMMAND_FORMAT)
        raise Undecodable("command_undecodable", f"no command of ours: {error}") from None
    if command.format > COMMAND_FORMAT:
        raise FormatTooNew("a command", command.format, COMMAND_FORMAT)
    return command
