"""Outcomes of attempts, and their encoding as records of the commands topic."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tables.commands import StepOutcome, encode_command
from tables.effects import StepRequested
from tables.kinds import AtOnce, Completed, Failed
from tables.limits import MAX_ID_CHARACTERS, MAX_OUTPUT_BYTES, clip

_encoder = msgspec.json.Encoder()


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """One outcome; the ids of the attempt are added when it is encoded."""

    outcome: Literal["completed", "failed", "waiting", "submitted", "unreachable"]
    output: Any = None
    code: str = ""
    message: str = ""
    retryable: bool = True
    deliberation_id: str = ""
    published: dict[str, Any] = {}
    """Of a publish step: stream, sequence, duplicate."""


def outcome_of(result: AtOnce) -> Outcome:
    """Return the outcome with the same result as `at_once` of the kind."""
    if isinstance(result, Completed):
        return Outcome("completed", result.output)
    if isinstance(result, Failed):
        return failed(result.code, result.message, retryable=result.retryable)
    return Outcome("waiting", result.output)


def failed(code: str, message: str, *, retryable: bool = True) -> Outcome:
    return Outcome("failed", code=code, message=message, retryable=retryable)


INTERNAL_ERROR = failed("internal_error", "the agent of the step failed unexpectedly; see the worker's log")


def encode_outcome(request: StepRequested, outcome: Outcome) -> bytes:
    """Encode the StepOutcome record that answers `request`; an output beyond the limit becomes a failure."""
    output = b"null" if outcome.output is None else _encoder.encode(outcome.output)
    if len(output) > MAX_OUTPUT_BYTES:
        message = f"the output has {len(output)} bytes, at most {MAX_OUTPUT_BYTES} are allowed"
        return encode_outcome(request, failed("output_too_large", message))
    return encode_command(
        StepOutcome(
            instance_id=request.instance_id,
            step_id=request.step_id,
            attempt=request.attempt,
            outcome=outcome.outcome,
            # Encoded once: the measured bytes are the written ones.
            output=None if outcome.output is None else msgspec.Raw(output),
            size=0 if outcome.output is None else len(output),
            # A neighbour's texts, cut as the fold cuts them: a record beyond the limit could never be sent.
            error_code=clip(outcome.code, MAX_ID_CHARACTERS),
            error_message=clip(outcome.message),
            retryable=outcome.retryable,
            deliberation_id=clip(outcome.deliberation_id, MAX_ID_CHARACTERS),
            effect_id=request.id,
            published=outcome.published,
        )
    )
