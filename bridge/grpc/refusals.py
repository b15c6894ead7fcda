"""Refusals of gRPC calls: checks of request fields, and the status with a stable code for each error."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio
import structlog

from bridge.dead_letters import DeadLetterUnknown, NotReplayable
from bridge.definitions import DefinitionUnknown
from bridge.grpc.start_request import LARGEST_START_BYTES, StartInvalid
from ports.errors import CeremonyError
from ports.log import LogFailed, LogUnavailable, RecordTooLarge
from ports.redaction import Redactor
from streams.api import Overloaded, Reply, Unavailable
from tables.commands import DERIVED_ID_PREFIXES
from tables.errors import DefinitionInvalid
from tables.fold.refusals import CLASS_OF, INPUTS_TOO_LARGE
from tables.limits import MAX_ID_CHARACTERS

log = structlog.get_logger(__name__)

# Trailing metadata of UNAVAILABLE and RESOURCE_EXHAUSTED: the earliest time to repeat the call.
RETRY_KEY = "retry-after-ms"
DEFAULT_LIMIT, LARGEST_LIMIT = 100, 1000
# Retry hint after a failure of the log: this worker ends, and the next owner answers.
LOG_RETRY_SECONDS = 2.0
LOG_TEXT = "the log cannot be written or read by this worker; repeating the call is safe"
# Characters of a comment, and of the name of a gate or trigger, which are only looked up.
LONGEST_TEXT = 4096
# Characters of an actor, a role or a request id; rows keep as many, so none is shortened.
LONGEST_NAME = MAX_ID_CHARACTERS
# Bytes of a percent-encoded status message; clients refuse trailers above 8 KiB.
LONGEST_DETAILS_BYTES = 6000
# Status of each code of the fold; the ceremony agent answers `fold_failed` when the fold raised an exception.
STATUS_OF = {code: grpc.StatusCode[kind] for code, kind in CLASS_OF.items()} | {"fold_failed": grpc.StatusCode.INTERNAL}

Context = grpc.aio.ServicerContext
Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


class CallRefused(CeremonyError):
    """Ends a call with a status; the client receives `code: message` as its details."""

    def __init__(
        self, status: grpc.StatusCode, code: str, message: str, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        """Sent as trailing metadata; None when repeating the call does not help."""


# Errors with a code and a text for clients; every other error is an internal one.
STATUS_OF_ERROR: Mapping[type[CeremonyError], grpc.StatusCode] = {
    DefinitionUnknown: grpc.StatusCode.NOT_FOUND,
    DefinitionInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    StartInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    DeadLetterUnknown: grpc.StatusCode.NOT_FOUND,
    NotReplayable: grpc.StatusCode.FAILED_PRECONDITION,
}


def invalid(code: str, message: str) -> CallRefused:
    return CallRefused(grpc.StatusCode.INVALID_ARGUMENT, code, message)


def start_too_large(size: int) -> CallRefused | None:
    """The refusal of a start request of so many bytes, which is not decoded; None for one that may be valid."""
    if size <= LARGEST_START_BYTES:
        return None
    return invalid(INPUTS_TOO_LARGE, f"the request is {size} bytes, at most {LARGEST_START_BYTES} are read")


def refusal_of(error: Exception) -> CallRefused:
    """The refusal that a client receives for an error. An unexpected error is logged, and its text stays here."""
    if isinstance(error, CallRefused):
        return error
    if isinstance(error, CeremonyError) and type(error) in STATUS_OF_ERROR:
        return CallRefused(STATUS_OF_ERROR[type(error)], error.code, error.message)
    if isinstance(error, RecordTooLarge):
        return invalid("request_too_large", "the request is larger than a record of the log may be")
    if isinstance(error, (Unavailable, Overloaded)):
        full = isinstance(error, Overloaded)
        status = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.UNAVAILABLE
        return CallRefused(status, "overloaded" if full else "unavailable", error.message, error.retry_after_seconds)
    if isinstance(error, (LogFailed, LogUnavailable)):
        return CallRefused(grpc.StatusCode.UNAVAILABLE, "unavailable", LOG_TEXT, LOG_RETRY_SECONDS)
    log.error("grpc_internal_error", exc_info=error)
    return CallRefused(grpc.StatusCode.INTERNAL, "internal", "an error of ours; the engine's log has the details")


def details(text: str) -> str:
    """A status message short enough for every client; longer ones would arrive as RESOURCE_EXHAUSTED."""
    clean = text.encode(errors="replace").decode()
    kept = clean[:LONGEST_DETAILS_BYTES]
    while len(quote(kept)) > LONGEST_DETAILS_BYTES:
        kept = kept[: len(kept) * 3 // 4]
    return kept if len(kept) == len(clean) else f"{kept}…"


async def abort(context: Context[Any, Any], error: Exception) -> NoReturn:
    """End a stream immediately."""
    refusal = refusal_of(error)
    await context.abort(refusal.status, *details_and_trailers(refusal))


def refuse(context: Context[Any, Any], error: Exception) -> None:
    """End a unary call with this error when its handler returns; the handler's result is not sent.

    Does not use `abort`: gRPC keeps that exception in the call, and its frames hold the call. Only the garbage
    collector frees such a cycle, and it comes late: 34,000 refused calls held 330 MB.
    """
    refusal = refusal_of(error)
    end(context, refusal.status, *details_and_trailers(refusal))


def end(
    context: Context[Any, Any], status: grpc.StatusCode, text: str, trailing: Sequence[tuple[str, str | bytes]] = ()
) -> None:
    """End a unary call with this status when its handler returns."""
    context.set_code(status)
    context.set_details(text)
    context.set_trailing_metadata(tuple(trailing))


def details_and_trailers(refusal: CallRefused) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Status message and trailing metadata of a refused call."""
    text = details(f"{refusal.code}: {refusal.message}")
    if refusal.retry_after_seconds is None:
        return text, ()
    return text, ((RETRY_KEY, str(int(refusal.retry_after_seconds * 1000))),)


def errors_become_statuses(call: Method) -> Method:
    """Turn every error of the wrapped call into a status with a stable code."""

    @wraps(call)
    async def wrapped(self: Any, request: Any, context: Context[Any, Any]) -> Any:
        try:
            return await call(self, request, context)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status with a code
            refuse(context, error)

    return wrapped  # type: ignore[return-value]  # a decorator that keeps the signature


@contextlib.contextmanager
def repeatable_under(request_id: str) -> Iterator[None]:
    """Let every UNAVAILABLE of this block name the request id: the write may be done, and repeating it is safe so."""
    try:
        yield
    except Unavailable as error:
        raise error.repeatable_under(request_id) from error
    except (LogFailed, LogUnavailable) as error:
        raise Unavailable(LOG_TEXT, LOG_RETRY_SECONDS).repeatable_under(request_id) from error


def unknown_ceremony(instance_id: str) -> CallRefused:
    return CallRefused(grpc.StatusCode.NOT_FOUND, "unknown_instance", f"there is no ceremony {instance_id[:300]!r}")


def require_accepted(reply: Reply) -> None:
    """Raise the fold's refusal, if it refused."""
    if reply.code:
        status = STATUS_OF.get(reply.code, grpc.StatusCode.FAILED_PRECONDITION)
        raise CallRefused(status, reply.code, reply.message)


def require(**fields: str) -> None:
    for name, value in fields.items():
        if not value.strip():
            raise invalid("field_required", f"{name} is required")


def require_own_id(request_id: str) -> None:
    """Refuse a request id that begins like the ids that the engine derives by itself."""
    prefix = next((prefix for prefix in DERIVED_ID_PREFIXES if request_id.startswith(prefix)), "")
    if prefix:
        raise invalid("request_id_reserved", f"request_id must not begin with {prefix!r}, as ids of the engine do")


def require_short(longest: int, **fields: str) -> None:
    for name, value in fields.items():
        if len(value) > longest:
            raise invalid("field_too_long", f"{name} has {len(value)} characters, at most {longest} are taken")


def require_no_secret(redactor: Redactor, **ids: str) -> None:
    """Refuse ids that hold a secret: they name a ceremony everywhere, and are redacted nowhere."""
    if not redactor.suspicious("\n".join(ids.values()).encode(errors="replace"), json=False):
        return
    for name, value in ids.items():
        if redactor.text(value) != value:
            raise invalid("secret_in_id", f"{name} holds a secret; choose another id, and have the secret revoked")


def page(limit: int, offset: int) -> tuple[int, int]:
    """Limit and offset of a list within the allowed ranges."""
    return min(limit, LARGEST_LIMIT) if limit > 0 else DEFAULT_LIMIT, max(offset, 0)
