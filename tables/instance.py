"""A ceremony instance: one immutable row of the table `ceremonies`.

Only `tables/fold/` makes or replaces one. Times are milliseconds since the epoch, of the log's clock.
Its parts are JSON values, which hold no cycles: `gc=False` spares the collector all rows of the table.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from tables.errors import FormatTooNew, Undecodable
from tables.formats import refuse_newer
from tables.limits import ANSWER_FRAME_BYTES, encoded_size, text_size

# Format number of a row as this release writes it.
ROW_FORMAT = 1
KEPT_COMMAND_IDS = 64


class StepStatus(StrEnum):
    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    WAITING_FOR_HUMAN = "WAITING_FOR_HUMAN"
    CANCELLED = "CANCELLED"


IN_FLIGHT = frozenset({StepStatus.IN_PROGRESS, StepStatus.WAITING_FOR_HUMAN})
# Error code of a rejected gate, the only failure that keeps an output.
REJECTED = "rejected"


class CeremonyStatus(StrEnum):
    RUNNING = "RUNNING"
    WAITING_FOR_HUMAN = "WAITING_FOR_HUMAN"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


TERMINAL = frozenset(
    {CeremonyStatus.COMPLETED, CeremonyStatus.FAILED, CeremonyStatus.CANCELLED, CeremonyStatus.TIMED_OUT}
)


class Phase(StrEnum):
    """The phase of the live attempt of a step: it names the thing awaited."""

    NONE = ""
    ASKED = "asked"
    """Requested; the agent's first outcome is awaited."""
    SUBMITTED = "submitted"
    """The neighbour took it; its results are awaited."""
    UNREACHABLE = "unreachable"
    """The neighbour was out of reach; a timer asks the same attempt again."""
    BACKOFF = "backoff"
    """The attempt failed; a timer starts the next one."""
    GATE = "gate"
    """A person is awaited."""


# By name once: on Python 3.11 each look-up of a member costs a call.
_IN_PROGRESS, _COMPLETED, _ASKED = StepStatus.IN_PROGRESS, StepStatus.COMPLETED, Phase.ASKED


class AgentAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The result of one agent of an attempt."""

    role: str = ""
    value: Any = None
    """Proposal (string or object), or the list of tasks."""
    error_code: str = ""
    """Set when the agent failed."""
    error_message: str = ""
    size: int = 0
    """Bytes of the encoded value."""

    def weight(self, agent_id: str) -> int:
        """Return the bytes that the answer adds to the row, with its agent's name and its texts."""
        texts = text_size(agent_id) + text_size(self.role) + text_size(self.error_code) + text_size(self.error_message)
        return self.size + texts + ANSWER_FRAME_BYTES


class Approval(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One decision of one actor."""

    actor: str
    role: str
    """The role in which the actor decided."""
    at: int
    comment: str = ""
    key: str = ""
    """The actor's name, case-folded; empty where that is the name itself, and in rows of older releases."""

    def same_actor(self, other: Approval) -> bool:
        """Return whether two decisions are of one actor, whatever the case of the letters."""
        return self.actor == other.actor or (self.key or self.actor) == (other.key or other.actor)


def gate_message(state: StepState, written: str) -> str:
    """Return the message of a gate as it was rendered when the gate opened; `written` where the row holds none."""
    shown = state.output.get("message") if isinstance(state.output, dict) else None
    return shown if isinstance(shown, str) else written


def approvals_weight(approvals: tuple[Approval, ...]) -> int:
    """Return the bytes that approvals add to the row."""
    return encoded_size(approvals) if approvals else 0


class StepState(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One step of one instance."""

    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    """Number of the newest attempt; it only rises, also over visits and operator retries."""
    tries: int = 0
    """Attempts used of the present retry budget."""
    phase: Phase = Phase.NONE
    output: Any = None
    """Only a COMPLETED step, a waiting gate and a rejected gate have one."""
    error_code: str = ""
    error_message: str = ""
    answers: dict[str, AgentAnswer] = {}
    """Answers to the live attempt, by agent id."""
    deliberation_id: str = ""
    asks: int = 0
    """Requests of the live attempt so far; it grows while a neighbour is unreachable."""
    approvals: tuple[Approval, ...] = ()
    """A gate's approvals of this visit, or its rejection. They are kept to recognise repeated decisions."""
    started_at: int = 0
    """Start of the newest attempt."""
    size: int = 0
    """Bytes of the encoded output."""
    gathered: int = 0
    """Bytes of everything else that was gathered: answers with their names, approvals, error texts, foreign ids."""
    announced: int = 0
    """The newest visit whose message was announced as published."""

    # -- the next state, by event

    def started(self, now: int, *, new_budget: bool = False) -> StepState:
        """The next attempt begins with its first request."""
        tries = 1 if new_budget else self.tries + 1
        return StepState(
            _IN_PROGRESS, self.attempt + 1, tries, _ASKED, asks=1, started_at=now, announced=self.announced
        )

    def asked_again(self) -> StepState:
        """The live attempt is requested once more."""
        return replace(self, phase=_ASKED, asks=self.asks + 1)

    def unreachable(self, code: str = "", message: str = "") -> StepState:
        """The neighbour of the live attempt is out of reach; the reason is kept until it answers."""
        texts = text_size(code) + text_size(message) - text_size(self.error_code) - text_size(self.error_message)
        gathered = self.gathered + texts
        return replace(self, phase=Phase.UNREACHABLE, error_code=code, error_message=message, gathered=gathered)

    def submitted(self, deliberation_id: str) -> StepState:
        """The neighbour took the live attempt; its results are awaited."""
        gathered = self.gathered + text_size(deliberation_id) - text_size(self.deliberation_id)
        if not self.error_code:
            return replace(self, phase=Phase.SUBMITTED, deliberation_id=deliberation_id, gathered=gathered)
        return replace(
            self,
            phase=Phase.SUBMITTED,
            deliberation_id=deliberation_id,
            gathered=gathered - text_size(self.error_code) - text_size(self.error_message),
            error_code="",
            error_message="",
        )

    def answered(self, agent_id: str, answer: AgentAnswer) -> StepState:
        """One agent has answered the live attempt."""
        gathered = self.gathered + answer.weight(agent_id)
        return replace(self, answers={**self.answers, agent_id: answer}, gathered=gathered)

    def restored(self, now: int) -> StepState:
        """The live attempt begins anew: answers to old attempts are dropped."""
        return replace(
            self,
            answers={},
            gathered=0,
            deliberation_id="",
            error_code="",
            error_message="",
            asks=0,
            started_at=now,
        )

    def opened(self, output: Any, size: int) -> StepState:
        """People are awaited."""
        return StepState(
            StepStatus.WAITING_FOR_HUMAN,
            self.attempt,
            self.tries,
            Phase.GATE,
            output,
            started_at=self.started_at,
            size=size,
        )

    def approved(self, approvals: tuple[Approval, ...]) -> StepState:
        """Some of the quorum have approved."""
        return replace(self, approvals=approvals, gathered=approvals_weight(approvals))

    def completed(self, output: Any, size: int, approvals: tuple[Approval, ...] = ()) -> StepState:
        """The step has its output."""
        has_texts = approvals or self.deliberation_id
        return StepState(
            _COMPLETED,
            self.attempt,
            self.tries,
            output=output,
            deliberation_id=self.deliberation_id,
            approvals=approvals,
            started_at=self.started_at,
            size=size,
            gathered=approvals_weight(approvals) + text_size(self.deliberation_id) if has_texts else 0,
            announced=self.announced,
        )

    def published(self, visit: int) -> StepState:
        """The message of this visit is announced as published."""
        return replace(self, announced=visit)

    def retrying(self, code: str, message: str) -> StepState:
        """The attempt failed; the next one begins later."""
        return StepState(
            _IN_PROGRESS,
            self.attempt,
            self.tries,
            Phase.BACKOFF,
            error_code=code,
            error_message=message,
            started_at=self.started_at,
            gathered=text_size(code) + text_size(message),
            announced=self.announced,
        )

    def failed(
        self, code: str, message: str, output: Any = None, size: int = 0, approvals: tuple[Approval, ...] = ()
    ) -> StepState:
        """The step failed for good; only a rejected gate keeps an output."""
        texts = text_size(code) + text_size(message) + text_size(self.deliberation_id)
        return StepState(
            StepStatus.FAILED,
            self.attempt,
            self.tries,
            output=output,
            error_code=code,
            error_message=message,
            deliberation_id=self.deliberation_id,
            approvals=approvals,
            started_at=self.started_at,
            size=size,
            gathered=approvals_weight(approvals) + texts,
            announced=self.announced,
        )

    def cancelled(self) -> StepState:
        """The ceremony left the state, or ended, while the step was in flight."""
        return StepState(
            StepStatus.CANCELLED,
            self.attempt,
            self.tries,
            started_at=self.started_at,
            announced=self.announced,
        )

    def reset(self) -> StepState:
        """The state is entered: PENDING, with nothing of an earlier visit but its numbers."""
        return StepState(attempt=self.attempt, announced=self.announced)


class Pauser(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The actor who paused the ceremony, with the reason."""

    actor: str
    role: str = ""
    reason: str = ""


class AskedTrigger(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A transition that an agent requested while the ceremony was PAUSED; it is judged at the resume."""

    step_id: str
    agent_id: str
    trigger: str
    visit: int
    """Visit of the step's state in which the agent was asked."""


class Timer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A deadline. Ids: `timeout/<step>`, `retry/<step>`, `ask/<step>`, `gate/<step>`, `ceremony_max`, `expire`."""

    due: int
    """Milliseconds; while the ceremony is PAUSED, the remaining time of a step or gate timer."""
    attempt: int = 0


class Instance(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One ceremony."""

    instance_id: str
    ceremony_id: str
    story_id: str
    definition_name: str
    definition_hash: str
    correlation_id: str
    requested_by: str
    start_digest: str
    """Digest of definition_name, inputs and step_ids: two starts with the same digest are the same."""
    state: str
    status: CeremonyStatus
    created_at: int
    updated_at: int
    format: int = ROW_FORMAT
    version: int = 0
    """Rises by one with each command that changes the row."""
    ended_at: int = 0
    inputs: dict[str, Any] = {}
    selected: tuple[str, ...] = ()
    """Step ids that run by themselves, in file order; empty selects all."""
    steps: dict[str, StepState] = {}
    visits: dict[str, int] = {}
    """Number of times each state was entered."""
    guard_approvals: dict[str, tuple[Approval, ...]] = {}
    """Approvals of this visit of the present state, by human guard."""
    timers: dict[str, Timer] = {}
    paused_at: int = 0
    """0 unless PAUSED."""
    paused_by: Pauser | None = None
    command_ids: tuple[str, ...] = ()
    """The last 64 idempotency keys: a command with one of these ids is ignored."""
    error_code: str = ""
    error_message: str = ""
    size: int = 0
    """Bytes of inputs, outputs, gathered answers, approvals and error texts, as the row writes them."""
    inputs_size: int = 0
    """The part of `size` that is due to the inputs."""
    expired: bool = False
    """A stub: retention has removed everything but version and digest."""
    approvals_size: int = 0
    """The part of `size` that is due to the approvals of guards."""
    command_digests: tuple[str, ...] = ()
    """Digests of the operations with the last of `command_ids`, in the same order and aligned at the end; "" for an
    agent's trigger. Ids kept by older releases have none."""
    asked_triggers: tuple[AskedTrigger, ...] = ()
    """Triggers of agents that came while the ceremony was PAUSED, in the order in which they came."""
    traceparent: str = ""
    """W3C Trace Context of the caller that started it; no rule reads it."""


class Outline(msgspec.Struct, frozen=True, gc=False):
    """The fields of an Instance that a scan of all rows reads, decoded at a fifth of the cost."""

    instance_id: str
    story_id: str
    definition_name: str
    state: str
    status: CeremonyStatus
    created_at: int
    updated_at: int = 0
    timers: dict[str, Timer] = {}
    format: int = ROW_FORMAT


class Formatted(Protocol):
    """A row, or a part of one, with the format in which it was written."""

    @property
    def format(self) -> int: ...


R = TypeVar("R", bound=Formatted)

# Release 0.1.0 counted texts by characters or not at all, so each row is counted again when it is decoded; its outputs,
# which were measured, only above this size.
_MEASURED_FROM_BYTES = 256 * 1024
# Bytes of the two inputs that every ceremony has, which are not measured at the start.
_OWN_INPUTS_BYTES = 1024
_PAUSED = CeremonyStatus.PAUSED  # on Python 3.11 each look-up of a member costs a call
_outlines = msgspec.json.Decoder(Outline)
_decoder = msgspec.json.Decoder(Instance)
_encoder = msgspec.json.Encoder()


def encode_instance(instance: Instance) -> bytes:
    """Encode a row; the same instance always gives the same bytes."""
    return _encoder.encode(instance)


def decode_instance(value: bytes) -> Instance:
    """Decode a row. Raises Undecodable, or FormatTooNew for a newer release's row."""
    row = decoded(_decoder, value)
    return recounted(row, outputs=len(value) > _MEASURED_FROM_BYTES)


def decode_outline(value: bytes) -> Outline:
    """Decode the outline of a row. Raises as `decode_instance` does."""
    return decoded(_outlines, value)


def decoded(decoder: msgspec.json.Decoder[R], value: bytes) -> R:
    """Decode a row, or a part of one. Raises as `decode_instance` does."""
    try:
        row = decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refuse_newer(value, "a row", ROW_FORMAT)
        raise Undecodable("row_undecodable", f"no row of ours: {error}") from None
    if row.format > ROW_FORMAT:
        raise FormatTooNew("a row", row.format, ROW_FORMAT)
    return row


def recounted(row: Instance, *, outputs: bool = True) -> Instance:
    """Return the row with its sizes counted anew, those of outputs and answers on demand; as it is where all are right.

    Rows of this release are right, so the fold gives the same bytes whether a row was decoded meanwhile or not.
    """
    steps, inputs = row.steps, row.inputs_size
    for step_id, step in row.steps.items():
        again = _recounted_step(_measured(step) if outputs else step)
        if again is not step:
            steps = {**steps, step_id: again}
    if outputs and row.inputs and (found := encoded_size(row.inputs)) > inputs + _OWN_INPUTS_BYTES:
        inputs = found
    approvals = sum(map(approvals_weight, row.guard_approvals.values())) if row.guard_approvals else 0
    if steps is row.steps and (inputs, approvals) == (row.inputs_size, row.approvals_size):
        return row
    size = inputs + approvals + sum(step.size + step.gathered for step in steps.values())
    return replace(row, steps=steps, inputs_size=inputs, approvals_size=approvals, size=size)


def _measured(step: StepState) -> StepState:
    """Return the step with the sizes of its output and its answers as they are."""
    size = step.size if step.output is None else encoded_size(step.output)
    sizes = {agent_id: encoded_size(answer.value) for agent_id, answer in step.answers.items()}
    if size == step.size and all(step.answers[agent_id].size == found for agent_id, found in sizes.items()):
        return step
    answers = {agent_id: replace(answer, size=sizes[agent_id]) for agent_id, answer in step.answers.items()}
    return replace(step, size=size, answers=answers)


def _recounted_step(step: StepState) -> StepState:
    gathered = approvals_weight(step.approvals) if step.approvals else 0
    if step.error_code or step.error_message:
        gathered += text_size(step.error_code) + text_size(step.error_message)
    if step.deliberation_id:
        gathered += text_size(step.deliberation_id)
    for agent_id, answer in step.answers.items():
        gathered += answer.weight(agent_id)
    return step if gathered == step.gathered else replace(step, gathered=gathered)


def next_due(instance: Instance | Outline) -> int | None:
    """Return the earliest due time of the running timers, in milliseconds, or None."""
    if instance.status is _PAUSED:
        timer = instance.timers.get("ceremony_max")
        return None if timer is None else timer.due
    earliest = None
    for timer in instance.timers.values():
        if earliest is None or timer.due < earliest:
            earliest = timer.due
    return earliest
