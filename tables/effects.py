"""Effects: the work that the fold orders. Their ids are derived from the row, never random.

An id is `<instance>/<version>/<ordinal>@<fold>`, or `<partition>/<offset>/<ordinal>` where nothing changed;
`fold/context.py` makes it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tables.errors import FormatTooNew, Undecodable
from tables.formats import refuse_newer

# Raised whenever the results of `decide` change; the golden logs notice.
FOLD = 4
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
    """Number of times the step's state was entered."""
    deadline: int
    """Milliseconds of the log's clock; an agent drops a request that is past it. 0: none."""
    correlation_id: str
    body: Any
    """As the kind's `request` made it."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """An event for the outside; `subject` is also its event_type."""

    id: str
    subject: str
    instance_id: str
    correlation_id: str
    at: int
    """Time of the command's append, in milliseconds."""
    payload: dict[str, Any]
    metadata: dict[str, str] | None = None
    """More fields of the envelope, for the fields of the payload are fixed; None costs nothing."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An answer to the waiting client: the command cannot be applied now."""

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
    """Return a decoder of requests whose body is this struct, decoded without a dict in between."""
    shape = msgspec.defstruct("StepRequested", [("body", body)], bases=(StepRequested,), frozen=True, kw_only=True)
    return msgspec.json.Decoder(shape)


def decode_request(value: bytes | None, decoder: RequestDecoder = _requests) -> StepRequested:
    """Return the request in a record's value. Raises Undecodable or FormatTooNew."""
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
