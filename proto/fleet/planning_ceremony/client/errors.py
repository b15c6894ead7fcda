"""The error of a refused call: its status, stable code, text, and the details for programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

# Every text of the engine begins so; gRPC's own texts do not.
CODE = re.compile(r"([a-z][a-z0-9_]*): ")
# Trailing metadata: milliseconds until the call may be repeated.
RETRY_KEY = "retry-after-ms"
# Statuses of a connection that broke, unless the engine itself set them.
CONNECTION_STATUSES = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of the request, or line of the definition, that breaks a rule."""

    field: str
    """Path such as `inputs.title`, or `review.yaml:12`."""
    code: str
    description: str


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """The details of a refusal (`google.rpc`); empty when the engine sent none, or was not reached."""

    violations: tuple[FieldViolation, ...] = ()
    more_violations: int = 0
    """Number of violations that had no room."""
    retry_delay: float | None = None
    """Seconds until the call may be repeated; None without a hint."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def instance_id(self) -> str:
        """The ceremony that the request was about; empty where it named none."""
        return self.metadata.get("instance_id", "")

    @property
    def request_id(self) -> str:
        """The id under which an operation may be repeated."""
        return self.metadata.get("request_id", "")


class PlanningCeremonyError(Exception):
    """The engine refused the call, or could not be reached in time."""

    def __init__(
        self, status: grpc.StatusCode, message: str, details: ErrorDetails | None = None, *, code: str = ""
    ) -> None:
        super().__init__(f"{status.name}: {message}")
        named = CODE.match(message)
        self.from_engine = bool(code or named)
        """False: the engine did not answer; the status and the message are those of gRPC."""
        self.status = status
        """NOT_FOUND, ALREADY_EXISTS, INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION, UNAVAILABLE, …"""
        self.code = code or (named[1] if named else status.name.lower())
        """Stable, lower snake case; programs may compare it."""
        self.message = message
        """Problem, place and remedy; begins with the code."""
        self.details = details or ErrorDetails()

    @property
    def retry_after(self) -> float | None:
        """Seconds until the call may be repeated; None without a hint from the engine."""
        return self.details.retry_delay

    @property
    def transient(self) -> bool:
        """Return whether the same call may succeed soon, and is safe to repeat."""
        if self.status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return self.retry_after is not None
        return self.status is grpc.StatusCode.UNAVAILABLE or (
            self.status in CONNECTION_STATUSES and not self.from_engine
        )


def error_of(failed: Any) -> PlanningCeremonyError:
    """The error for gRPC's own, of a sync or an async call."""
    text, trailing = failed.details() or "", failed.trailing_metadata() or ()
    hint = next((str(value) for key, value in trailing if key == RETRY_KEY), "")
    delay = int(hint) / 1000 if hint.isdigit() else None
    status = _status_in(failed)
    if status is None:
        return PlanningCeremonyError(failed.code(), text, ErrorDetails(retry_delay=delay))
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    _unpack(status, (info, bad, retry))
    if retry.HasField("retry_delay"):
        delay = retry.retry_delay.ToMilliseconds() / 1000
    metadata = dict(info.metadata)
    more = metadata.pop("more_violations", "")
    violations = tuple(FieldViolation(one.field, one.reason.lower(), one.description) for one in bad.field_violations)
    details = ErrorDetails(violations, int(more) if more.isdigit() else 0, delay, metadata)
    return PlanningCeremonyError(failed.code(), text, details, code=info.reason.lower())


def client_closed() -> PlanningCeremonyError:
    """The error of a call after `close`."""
    return PlanningCeremonyError(grpc.StatusCode.CANCELLED, "client_closed: the client is closed")


def _status_in(failed: Any) -> Status | None:
    """The `google.rpc.Status` of a failed call; None without one, and for one that is not of this call."""
    try:
        status: Status | None = rpc_status.from_call(failed)
    except (ValueError, DecodeError):
        return None
    return status


def _unpack(status: Status, kinds: Iterable[ErrorInfo | BadRequest | RetryInfo]) -> None:
    """Fill each message from the detail of its kind, if there is one."""
    for kind in kinds:
        for detail in status.details:
            detail.Unpack(kind)
