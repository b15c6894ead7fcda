"""The details of a refusal as programs read them: `google.rpc.Status` beside the text, always small enough to arrive.

A client refuses trailers above 8 KiB as RESOURCE_EXHAUSTED, and would not even learn the code. The trailers hold the
text twice: percent-encoded in `grpc-message`, and in the Status, where readers compare the two. The list of violations
is cut to the room that is left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from urllib.parse import quote

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from bridge.grpc.violation import MOST_NAMED, Violation

# Trailing metadata with the encoded Status.
DETAILS_KEY = "grpc-status-details-bin"
# The domain of every `reason`: the name that the engine has as a producer of events, too.
DOMAIN = "ceremony-engine"
# Metadata of ErrorInfo: the number of violations that had no room.
MORE_VIOLATIONS = "more_violations"
# Bytes of text and Status together as they travel; the other trailers take less than 500 bytes.
LARGEST_BYTES = 7_600
# Bytes of a percent-encoded text. It leaves 800 bytes of details beside a text of this length.
LONGEST_TEXT_BYTES = 2_800
# Characters of an id, a field and a description.
LONGEST_ID, LONGEST_FIELD, LONGEST_DESCRIPTION = 257, 200, 500
# The details that the engine sends.
KINDS: Mapping[str, type[Message]] = {kind.DESCRIPTOR.full_name: kind for kind in (ErrorInfo, BadRequest, RetryInfo)}


def fitting_text(text: str) -> str:
    """A status message short enough for every client; longer ones would arrive as RESOURCE_EXHAUSTED."""
    clean = text.encode(errors="replace").decode()
    kept = clean[:LONGEST_TEXT_BYTES]
    while len(quote(kept)) > LONGEST_TEXT_BYTES:
        kept = kept[: len(kept) * 3 // 4]
    return kept if len(kept) == len(clean) else f"{kept}…"


def encoded_status(
    status: grpc.StatusCode,
    code: str,
    text: str,
    *,
    retry_after_seconds: float | None = None,
    violations: Iterable[Violation] = (),
    named: Mapping[str, str] | None = None,
) -> bytes:
    """The Status of a refusal; `text` is its status message, `named` the ids that it is about."""
    made = Status(code=status.value[0], message=text)
    ids = {name: _clean(value, LONGEST_ID) for name, value in (named or {}).items() if value}
    of_fields = [one for one in violations if one.field]
    if len(of_fields) > MOST_NAMED:
        ids[MORE_VIOLATIONS] = str(len(of_fields) - MOST_NAMED)
    _add(made, ErrorInfo(reason=code.upper(), domain=DOMAIN, metadata=ids))
    shown = BadRequest(field_violations=map(_violation, of_fields[:MOST_NAMED]))
    if shown.field_violations:
        _add(made, shown)
    if retry_after_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(int(retry_after_seconds * 1000))
        _add(made, RetryInfo(retry_delay=delay))
    return fitted(made)


def unpacked(status: Status) -> list[Message]:
    """The details of a Status that are of a known kind. Raises DecodeError."""
    return [KINDS[one.TypeName()].FromString(one.value) for one in status.details if one.TypeName() in KINDS]


def repacked(status: Status, details: Iterable[Message]) -> Status:
    """The Status with these details instead of its own."""
    made = Status(code=status.code, message=status.message)
    for detail in details:
        _add(made, detail)
    return made


def fitted(status: Status) -> bytes:
    """Encode a Status, without the last violations where they have no room; ErrorInfo says how many are missing."""
    room = (LARGEST_BYTES - len(quote(status.message))) * 3 // 4
    if status.ByteSize() <= room:
        return status.SerializeToString()
    details = unpacked(status)
    info = next((one for one in details if isinstance(one, ErrorInfo)), ErrorInfo())
    bad = next((one for one in details if isinstance(one, BadRequest)), BadRequest())
    violations, left_out = list(bad.field_violations), int(info.metadata.get(MORE_VIOLATIONS, "0"))

    def with_the_first(kept: int) -> Status:
        bad.ClearField("field_violations")
        bad.field_violations.extend(violations[:kept])
        info.metadata.pop(MORE_VIOLATIONS, None)
        if more := left_out + len(violations) - kept:
            info.metadata[MORE_VIOLATIONS] = str(more)
        return repacked(status, details)

    def size(kept: int) -> int:
        return with_the_first(kept).ByteSize()

    made = with_the_first(bisect_right(range(1, len(violations) + 1), room, key=size))
    if made.ByteSize() > room:
        info.metadata.clear()
        made = repacked(status, details)
    return made.SerializeToString()


def decoded(data: bytes) -> Status | None:
    """The Status of these bytes; None for other bytes."""
    try:
        return Status.FromString(data)
    except DecodeError:
        return None


def _add(status: Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _violation(one: Violation) -> BadRequest.FieldViolation:
    return BadRequest.FieldViolation(
        field=_clean(one.field, LONGEST_FIELD),
        description=_clean(one.description, LONGEST_DESCRIPTION),
        reason=one.code.upper(),
    )


def _clean(text: str, longest: int) -> str:
    """The text as protobuf takes it, cut; half a surrogate pair becomes a question mark."""
    return text[:longest].encode(errors="replace").decode()
