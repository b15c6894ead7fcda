"""Effects: what the fold wants done, each with an id derived from the row, never drawn.

`<instance>/<version>/<ordinal>@<fold>`, or `<partition>/<offset>/<ordinal>` for a command that changed nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tables.errors import FormatTooNew, Undecodable
from tables.formats import refuse_newer

# Goes up whenever what `decide` returns changes; the golden log notices.
FOLD = 3
REQUEST_FORMAT = 1


class StepRequested(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """Ask the agent of a step kind to perform one attempt; a record of the topic `steps.<kind>`."""

    format: int = REQUEST_FORMAT
    id: str
    kind: str
    instance_id: str
    step_id: str
    attempt: int
    visit: int
    """How often the step's state was entered."""
    deadline: int
    """Milliseconds of the log's clock; an agent drops what is past it. 0: none."""
    correlation_id: str
    body: Any
    """What the kind asks: shape as the kind's `request` says."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """Something the outside may hear; `subject` is also its event_type."""

    id: str
    subject: str
    instance_id: str
    correlation_id: str
    at: int
    """Milliseconds: the fold's now."""
    payload: dict[str, Any]
    metadata: dict[str, str] | None = None
    """What the envelope says beside the payload, whose fields are fixed; None costs nothing."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An answer to who waits: the command made no sense now."""

    id: str
    instance_id: str
    command_id: str
    code: str
    message: str


class Ended(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The ceremony has come to a terminal status."""

    id: str
    instance_id: str
    status: str


Effect = StepRequested | Event | Refused | Ended

RequestDecoder = msgspec.json.Decoder[StepRequested]
_requests: RequestDecoder = msgspec.json.Decoder(StepRequested)
_encoder = msgspec.json.Encoder()


def encode_request(request: StepRequested) -> bytes:
    return _encoder.encode(request)


def request_decoder(body: type[Any]) -> RequestDecoder:
    """Decodes requests whose body has this shape: made at once, without a dict between."""
    shape = msgspec.defstruct("StepRequested", [("body", body)], bases=(StepRequested,), frozen=True, kw_only=True)
    return msgspec.json.Decoder(shape)


def decode_request(value: bytes | None, decoder: RequestDecoder = _requests) -> StepRequested:
    """The request in a record's value. Raises Undecodable or FormatTooNew."""
    if value is None:
        raise Undecodable("request_undecodable", "the record has no value")
    try:
        request = decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refuse_newer(value, "a step request", REQUEST_FORMAT)
        raise Undecodable("request_undecodable", f"no step request of ours: {error}") from None
    if request.format > REQUEST_FORMAT:
        raise FormatTooNew("a step request", request.format, REQUEST_FORMAT)
    return request
