"""Reads the request of a list: its filters, and the token of the page before."""

from __future__ import annotations

import base64
import binascii
import zlib
from datetime import UTC, datetime

import msgspec
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.refusals import invalid, require_short
from streams.api import Query, SortKey

# Characters of a page token, of the name and value of an input, and of any other filter.
LONGEST_TOKEN, LONGEST_INPUT, LONGEST_FILTER = 1024, 4096, 512
# Inputs that one list filters by.
MOST_INPUTS = 8
# Fields of a request that workers of release 0.1.0 know.
_OLD_FIELDS = frozenset({"state_filter", "definition_filter", "story_id", "status_filter", "limit", "offset"})


class PageToken(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The place behind which a page begins."""

    mark: int
    """Checksum of the filters: a token is for one list."""
    after: SortKey


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PageToken).decode


def query_of(request: pb.ListPlanningCeremonyInstancesRequest) -> Query:
    """The filters of a request. Raises CallRefused."""
    for name in ("state", "definition", "status", "correlation", "gate_role", "error_code", "subject"):
        require_short(LONGEST_FILTER, **{f"{name}_filter": getattr(request, f"{name}_filter")})
    require_short(LONGEST_FILTER, story_id=request.story_id)
    return Query(
        state=request.state_filter,
        definition=request.definition_filter,
        story=request.story_id,
        status=request.status_filter,
        correlation=request.correlation_filter,
        gate_role=request.gate_role_filter,
        error_code=request.error_code_filter,
        subject=request.subject_filter,
        inputs=_inputs(request),
        created_from=_time("created_from", request.created_from),
        created_before=_time("created_before", request.created_before),
        after=_after(request),
    )


def is_of_old_form(request: pb.ListPlanningCeremonyInstancesRequest) -> bool:
    """Return whether workers of release 0.1.0 understand the whole request."""
    return all(field.name in _OLD_FIELDS for field, _ in request.ListFields())


def next_page_token(request: pb.ListPlanningCeremonyInstancesRequest, after: SortKey) -> str:
    """The token of the page behind this place."""
    return base64.urlsafe_b64encode(_encode(PageToken(_mark(request), after))).decode()


def _inputs(request: pb.ListPlanningCeremonyInstancesRequest) -> tuple[tuple[str, str], ...]:
    if len(request.input_filters) > MOST_INPUTS:
        message = f"input_filters has {len(request.input_filters)}, at most {MOST_INPUTS}"
        raise invalid("too_many_filters", message, "input_filters")
    for name, value in request.input_filters.items():
        require_short(LONGEST_INPUT, input_filters=name + value)
    return tuple(sorted(request.input_filters.items()))


def _time(name: str, text: str) -> int | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text) if len(text) <= LONGEST_FILTER else None
        milliseconds = None if at is None else (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000
    except (ValueError, OverflowError):
        milliseconds = None
    if milliseconds is None:
        raise invalid("time_invalid", f"{name} is no ISO-8601 time such as 2026-01-31T12:00:00Z", name)
    return max(1, round(milliseconds))


def _after(request: pb.ListPlanningCeremonyInstancesRequest) -> SortKey | None:
    if not request.page_token:
        return None
    require_short(LONGEST_TOKEN, page_token=request.page_token)
    try:
        token = _decode(base64.urlsafe_b64decode(request.page_token.encode()))
    except (binascii.Error, msgspec.DecodeError, UnicodeError, ValueError):
        raise invalid("page_token_invalid", "page_token is no `next_page_token` of a list", "page_token") from None
    minus_created_at, _ = token.after
    if token.mark != _mark(request) or not -(2**62) < minus_created_at <= 0:
        message = "page_token is of a list with other filters; keep them, or begin anew"
        raise invalid("page_token_invalid", message, "page_token")
    return token.after


def _mark(request: pb.ListPlanningCeremonyInstancesRequest) -> int:
    """Checksum of the fields that choose the ceremonies."""
    filters = pb.ListPlanningCeremonyInstancesRequest()
    filters.CopyFrom(request)
    filters.ClearField("limit")
    filters.ClearField("offset")
    filters.ClearField("page_token")
    return zlib.crc32(filters.SerializeToString(deterministic=True))
