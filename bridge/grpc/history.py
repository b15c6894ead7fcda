"""Histories of ceremonies as messages, and the token of their next page."""

from __future__ import annotations

import base64
import binascii
import hashlib

import msgspec
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.refusals import CallRefused, invalid, require_short
from ports.history import HistoryEvent
from streams.api import History, HistoryPlace

# Events in one answer.
DEFAULT_HISTORY, LONGEST_HISTORY = 200, 1000
# Characters of a page token.
LONGEST_TOKEN = 256
_MARK_BYTES = 6


class _Token(msgspec.Struct, array_like=True, frozen=True):
    mark: bytes
    """Digest of the instance id: a token is for one ceremony."""
    place: HistoryPlace


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Token).decode


def limit_of(request: pb.GetHistoryRequest) -> int:
    return min(request.limit, LONGEST_HISTORY) if request.limit > 0 else DEFAULT_HISTORY


def place_of(request: pb.GetHistoryRequest) -> HistoryPlace | None:
    """Return where the requested page begins; None where the newest events are wanted. Raises CallRefused."""
    if not request.page_token:
        return HistoryPlace() if request.whole else None
    require_short(LONGEST_TOKEN, page_token=request.page_token)
    try:
        token = _decode(base64.urlsafe_b64decode(request.page_token.encode()))
    except (msgspec.DecodeError, binascii.Error, ValueError):
        raise _malformed() from None
    if token.mark != _mark(request.instance_id) or token.place.offset < 0:
        raise _malformed()
    return token.place


def _malformed() -> CallRefused:
    return invalid(
        "page_token_invalid", "page_token is no `next_page_token` of a history of this ceremony", "page_token"
    )


def _mark(instance_id: str) -> bytes:
    return hashlib.blake2b(instance_id.encode(), digest_size=_MARK_BYTES).digest()


def _token(instance_id: str, place: HistoryPlace) -> str:
    return base64.urlsafe_b64encode(_encode(_Token(_mark(instance_id), place))).decode()


def response(instance_id: str, found: History) -> pb.GetHistoryResponse:
    return pb.GetHistoryResponse(
        events=map(_event, found.events),
        stopped_at=pb.LogPosition(partition=found.partition, offset=found.stopped_at),
        complete=found.complete,
        message=found.message,
        next_page_token="" if found.next is None else _token(instance_id, found.next),
        first_offset=found.span[0],
        end_offset=found.span[1],
    )


def _event(event: HistoryEvent) -> pb.HistoryEvent:
    return pb.HistoryEvent(
        subject=event.subject,
        at=event.at,
        effect_id=event.effect_id,
        correlation_id=event.correlation_id,
        payload=event.payload,
        metadata=event.metadata,
        command=pb.LogPosition(partition=event.partition, offset=event.command_offset),
        source=event.source,
        missing_before=event.missing_before,
    )
