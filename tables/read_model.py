"""A row as the read models hold it: the JSON document in Valkey, the properties of the node in Neo4j.

Both have the properties that other services read, and one more, `engine`, with everything else that a sound instance is
made of. Answers to the live attempt are left out, since a restored attempt asks anew. Secrets are redacted on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from tables.instance import (
    Approval,
    AskedTrigger,
    CeremonyStatus,
    Instance,
    Pauser,
    StepState,
    StepStatus,
    Timer,
)
from tables.timers import iso

# Format number of `engine` as this release writes it.
ENGINE_FORMAT = 1

# Redacts an encoded `Texts`: None where nothing is to be redacted, else its value decoded and redacted, and the JSON
# paths of the replaced texts (`$.inputs.token`, `$.step_outputs.deliberate.proposal`).
Redact = Callable[[bytes], tuple[Any, Sequence[str]] | None]

_encode = msgspec.json.Encoder().encode
_Json = msgspec.Raw


def nothing_redacted(_: bytes) -> None:
    """Redact nothing, for tests and for texts that are redacted already."""


class EngineState(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """The property `engine`: what an Instance has beside the other properties. Times are milliseconds."""

    format: int
    row_format: int
    ceremony_id: str
    story_id: str
    requested_by: str
    created_at: int
    updated_at: int
    ended_at: int = 0
    definition_hash: str = ""
    start_digest: str = ""
    inputs: Any = None
    """The map of inputs by name."""
    selected: tuple[str, ...] = ()
    steps: dict[str, StepState] = {}
    """Attempts, phases, gates and errors of all steps; their status and output are among the other properties."""
    visits: dict[str, int] = {}
    guard_approvals: dict[str, tuple[Approval, ...]] = {}
    timers: dict[str, Timer] = {}
    paused_at: int = 0
    paused_by: Pauser | None = None
    asked_triggers: tuple[AskedTrigger, ...] = ()
    command_digests: tuple[str, ...] = ()
    traceparent: str = ""
    error_code: str = ""
    error_message: str = ""
    size: int = 0
    inputs_size: int = 0
    approvals_size: int = 0
    redacted: tuple[str, ...] = ()
    """JSON paths of redacted texts, from the root of `Texts`."""


class Texts(msgspec.Struct, frozen=True, gc=False):
    """The parts of a row that may hold a secret, as they are redacted."""

    correlation_id: str
    idempotency_keys: Sequence[str]
    inputs: Any
    step_outputs: Any
    engine: Any
    """An EngineState without inputs and digests."""


class Document(msgspec.Struct, frozen=True, gc=False):
    """A redacted row; inputs, outputs, keys and `engine` are encoded JSON."""

    instance_id: str
    version: int
    created_at: str
    updated_at: str
    definition_name: str
    definition_hash: str
    current_state: str
    status: CeremonyStatus
    correlation_id: str
    step_status: dict[str, StepStatus]
    step_outputs: bytes
    inputs: bytes
    idempotency_keys: bytes
    engine: bytes


class _ValkeyDocument(msgspec.Struct, frozen=True, gc=False):
    """The JSON in Valkey. Version and creation come first: the script that compares them reads only the beginning."""

    version: int
    created_at: str
    correlation_id: str
    instance_id: str
    definition_name: str
    definition_hash: str
    current_state: str
    status: CeremonyStatus
    step_status: dict[str, StepStatus]
    updated_at: str
    idempotency_keys: msgspec.Raw
    inputs: msgspec.Raw
    step_outputs: msgspec.Raw
    engine: msgspec.Raw


def document_of(row: Instance, redact: Redact) -> Document:
    """Return the document of a row that is no stub. `redact` knows the prompts of its definition."""
    outputs = {step_id: step.output for step_id, step in row.steps.items() if step.output is not None}
    inputs, step_outputs = _encode(row.inputs), _encode(outputs)
    engine = _engine_of(row)
    texts = Texts(row.correlation_id, row.command_ids, _Json(inputs), _Json(step_outputs), engine)
    correlation_id, keys = row.correlation_id, _encode(row.command_ids)
    changed = redact(_encode(texts))
    if changed is not None:
        value, paths = changed
        correlation_id, keys = value["correlation_id"], _encode(value["idempotency_keys"])
        inputs, step_outputs = _encode(value["inputs"]), _encode(value["step_outputs"])
        engine = replace(msgspec.convert(value["engine"], EngineState), redacted=tuple(paths))
    whole = replace(
        engine,
        definition_hash=row.definition_hash,
        start_digest=row.start_digest,
        command_digests=row.command_digests,
        traceparent=row.traceparent,
        inputs=_Json(inputs),
    )
    return Document(
        instance_id=row.instance_id,
        version=row.version,
        created_at=iso(row.created_at),
        updated_at=iso(row.updated_at),
        definition_name=row.definition_name,
        definition_hash=row.definition_hash,
        current_state=row.state,
        status=row.status,
        correlation_id=correlation_id,
        step_status={step_id: step.status for step_id, step in row.steps.items()},
        step_outputs=step_outputs,
        inputs=inputs,
        idempotency_keys=keys,
        engine=_encode(whole),
    )


def _engine_of(row: Instance) -> EngineState:
    """Return `engine` without inputs and digests: no digest is a secret, however much it looks like one."""
    return EngineState(
        format=ENGINE_FORMAT,
        row_format=row.format,
        ceremony_id=row.ceremony_id,
        story_id=row.story_id,
        requested_by=row.requested_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
        ended_at=row.ended_at,
        selected=row.selected,
        steps={step_id: _bare(step) for step_id, step in row.steps.items()},
        visits=row.visits,
        guard_approvals=row.guard_approvals,
        timers=row.timers,
        paused_at=row.paused_at,
        paused_by=row.paused_by,
        asked_triggers=row.asked_triggers,
        error_code=row.error_code,
        error_message=row.error_message,
        size=row.size,
        inputs_size=row.inputs_size,
        approvals_size=row.approvals_size,
    )


def _bare(step: StepState) -> StepState:
    return replace(step, status=StepStatus.PENDING, output=None, answers={})


def valkey_json(document: Document) -> bytes:
    """Return the value of `ceremony:instance:<id>`."""
    return _encode(
        _ValkeyDocument(
            document.version,
            document.created_at,
            document.correlation_id,
            document.instance_id,
            document.definition_name,
            document.definition_hash,
            document.current_state,
            document.status,
            document.step_status,
            document.updated_at,
            _Json(document.idempotency_keys),
            _Json(document.inputs),
            _Json(document.step_outputs),
            _Json(document.engine),
        )
    )


def neo4j_properties(document: Document) -> dict[str, str | int]:
    """Return the properties of `(:CeremonyInstance)`."""
    return {
        "instance_id": document.instance_id,
        "definition_name": document.definition_name,
        "current_state": document.current_state,
        "status": document.status.value,
        "version": document.version,
        "step_status_json": _encode(document.step_status).decode(),
        "step_outputs_json": document.step_outputs.decode(),
        "correlation_id": document.correlation_id,
        "idempotency_keys_json": document.idempotency_keys.decode(),
        "created_at": document.created_at,
        "updated_at": document.updated_at,
        "engine": document.engine.decode(),
    }
