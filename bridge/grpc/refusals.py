"""Refusals of gRPC calls: checks of request fields, and the status with a stable code for each error."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
import structlog

from bridge.dead_letters import DeadLetterUnknown, NotReplayable
from bridge.definitions import DefinitionUnknown
from bridge.grpc.error_details import DETAILS_KEY, encoded_status, fitting_text
from bridge.grpc.start_request import LARGEST_START_BYTES, StartInvalid
from bridge.grpc.violation import Violation, violations_of
from ports.errors import CeremonyError
from ports.log import LogFailed, LogUnavailable, RecordTooLarge
from ports.redaction import Redactor
from streams.api import Overloaded, Reply, Unavailable
from tables.commands import DERIVED_ID_PREFIXES
from tables.errors import DefinitionInvalid
from tables.fold import refusals as fold
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
# Status of each code of the fold; the ceremony agent answers `fold_failed` when the fold raised an exception.
STATUS_OF = {code: grpc.StatusCode[kind] for code, kind in CLASS_OF.items()} | {"fold_failed": grpc.StatusCode.INTERNAL}

# Field of the request that a code of the fold speaks of.
FIELD_OF: Mapping[str, str] = {
    fold.ACTOR_REQUIRED: "actor",
    fold.INPUTS_INVALID: "inputs",
    fold.INPUTS_TOO_DEEP: "inputs",
    fold.INPUTS_TOO_LARGE: "inputs",
    fold.INPUT_MISSING: "inputs",
    fold.INVALID_ID: "ceremony_id",
    fold.REQUEST_ID_REUSED: "request_id",
    fold.STEP_UNKNOWN: "step_id",
}
Context = grpc.aio.ServicerContext
Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


class CallRefused(CeremonyError):
    """Ends a call with a status; the client receives `code: message` as its text, and the details for programs."""

    def __init__(
        self,
        status: grpc.StatusCode,
        code: str,
        message: str,
        retry_after_seconds: float | None = None,
        *,
        violations: Sequence[Violation] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(code, message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        """Sent as trailing metadata; None when repeating the call does not help."""
        self.violations = violations
        self.request_id = request_id
        """The id under which repeating is safe, if the engine drew it."""


# Errors with a code and a text for clients; every other error is an internal one.
STATUS_OF_ERROR: Mapping[type[CeremonyError], grpc.StatusCode] = {
    DefinitionUnknown: grpc.StatusCode.NOT_FOUND,
    DefinitionInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    StartInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    DeadLetterUnknown: grpc.StatusCode.NOT_FOUND,
    NotReplayable: grpc.StatusCode.FAILED_PRECONDITION,
}


def invalid(code: str, message: str, field: str = "", others: Sequence[Violation] = ()) -> CallRefused:
    """A refusal whose text speaks of one field; `others` are at fault as well."""
    violations = (Violation(field, code, message), *others)
    return CallRefused(grpc.StatusCode.INVALID_ARGUMENT, code, message, violations=violations)


def all_invalid(violations: Sequence[Violation]) -> CallRefused:
    """The refusal for these violations; its text speaks of the first."""
    first, *others = violations
    return invalid(first.code, first.description, first.field, others)


def start_too_large(size: int) -> CallRefused | None:
    """The refusal of a start request of so many bytes, which is not decoded; None for one that may be valid."""
    if size <= LARGEST_START_BYTES:
        return None
    return invalid(INPUTS_TOO_LARGE, f"the request is {size} bytes, at most {LARGEST_START_BYTES} are read", "inputs")


def refusal_of(error: Exception) -> CallRefused:
    """The refusal that a client receives for an error. An unexpected error is logged, and its text stays here."""
    if isinstance(error, CallRefused):
        return error
    if isinstance(error, CeremonyError) and type(error) in STATUS_OF_ERROR:
        return CallRefused(STATUS_OF_ERROR[type(error)], error.code, error.message, violations=_violations(error))
    if isinstance(error, RecordTooLarge):
        return invalid("request_too_large", "the request is larger than a record of the log may be")
    if isinstance(error, (Unavailable, Overloaded)):
        full = isinstance(error, Overloaded)
        status = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.UNAVAILABLE
        code, request_id = ("overloaded", "") if full else ("unavailable", getattr(error, "request_id", ""))
        return CallRefused(status, code, error.message, error.retry_after_seconds, request_id=request_id)
    if isinstance(error, (LogFailed, LogUnavailable)):
        return CallRefused(grpc.StatusCode.UNAVAILABLE, "unavailable", LOG_TEXT, LOG_RETRY_SECONDS)
    log.error("grpc_internal_error", exc_info=error)
    return CallRefused(grpc.StatusCode.INTERNAL, "internal", "an error of ours; the engine's log has the details")


def _violations(error: CeremonyError) -> Sequence[Violation]:
    if isinstance(error, DefinitionInvalid):
        return violations_of(error.problems)
    return error.violations if isinstance(error, StartInvalid) else ()


async def abort(context: Context[Any, Any], error: Exception, request: Any = None) -> NoReturn:
    """End a stream immediately."""
    refusal = refusal_of(error)
    await context.abort(refusal.status, *details_and_trailers(refusal, request))


def refuse(context: Context[Any, Any], error: Exception, request: Any = None) -> None:
    """End a unary call with this error when its handler returns; the handler's result is not sent.

    The ids in `request` are named by the details.

    Does not use `abort`: gRPC keeps that exception in the call, and its frames hold the call. Only the garbage
    collector frees such a cycle, and it comes late: 34,000 refused calls held 330 MB.
    """
    refusal = refusal_of(error)
    end(context, refusal.status, *details_and_trailers(refusal, request))


def end(
    context: Context[Any, Any], status: grpc.StatusCode, text: str, trailing: Sequence[tuple[str, str | bytes]] = ()
) -> None:
    """End a unary call with this status when its handler returns."""
    context.set_code(status)
    context.set_details(text)
    context.set_trailing_metadata(tuple(trailing))


def details_and_trailers(refusal: CallRefused, request: Any = None) -> tuple[str, tuple[tuple[str, str | bytes], ...]]:
    """Status message and trailing metadata of a refused call."""
    text, after = fitting_text(f"{refusal.code}: {refusal.message}"), refusal.retry_after_seconds
    named = {"instance_id": _instance_id(request), "request_id": _request_id(request) or refusal.request_id}
    status = encoded_status(
        refusal.status, refusal.code, text, retry_after_seconds=after, violations=refusal.violations, named=named
    )
    hint = () if after is None else ((RETRY_KEY, str(int(after * 1000))),)
    return text, (*hint, (DETAILS_KEY, status))


def _instance_id(request: Any) -> str:
    """The instance id in a request; empty where it names none."""
    ceremony_id, story_id = getattr(request, "ceremony_id", ""), getattr(request, "story_id", "")
    return getattr(request, "instance_id", "") or (f"{ceremony_id}:{story_id}" if ceremony_id and story_id else "")


def _request_id(request: Any) -> str:
    return getattr(request, "request_id", "")


def errors_become_statuses(call: Method) -> Method:
    """Turn every error of the wrapped call into a status with a stable code."""

    @wraps(call)
    async def wrapped(self: Any, request: Any, context: Context[Any, Any]) -> Any:
        try:
            return await call(self, request, context)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status with a code
            refuse(context, error, request)

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
        violation = Violation(FIELD_OF.get(reply.code, ""), reply.code, reply.message)
        raise CallRefused(status, reply.code, reply.message, violations=(violation,))


def check_all(*checks: Callable[[], object]) -> None:
    """Make every check, and refuse with the violations of all of them; the text is that of the first."""
    found: list[Violation] = []
    for check in checks:
        try:
            check()
        except CallRefused as refused:
            found += refused.violations
        except StartInvalid as error:
            found += error.violations
    if found:
        raise all_invalid(list(dict.fromkeys(found)))


def require(**fields: str) -> None:
    blank = [name for name, value in fields.items() if not value.strip()]
    if blank:
        raise all_invalid([Violation(name, "field_required", f"{name} is required") for name in blank])


def require_own_id(request_id: str) -> None:
    """Refuse a request id that begins like the ids that the engine derives by itself."""
    prefix = next((prefix for prefix in DERIVED_ID_PREFIXES if request_id.startswith(prefix)), "")
    if prefix:
        message = f"request_id must not begin with {prefix!r}, as ids of the engine do"
        raise invalid("request_id_reserved", message, "request_id")


def require_short(longest: int, **fields: str) -> None:
    long = {name: len(value) for name, value in fields.items() if len(value) > longest}
    if long:
        text = "{} has {} characters, at most {} are taken"
        raise all_invalid(
            [Violation(name, "field_too_long", text.format(name, n, longest)) for name, n in long.items()]
        )


def require_no_secret(redactor: Redactor, **ids: str) -> None:
    """Refuse ids that hold a secret: they name a ceremony everywhere, and are redacted nowhere."""
    if not redactor.suspicious("\n".join(ids.values()).encode(errors="replace"), json=False):
        return
    found = [name for name, value in ids.items() if redactor.text(value) != value]
    if found:
        text = "{} holds a secret; choose another id, and have the secret revoked"
        raise all_invalid([Violation(name, "secret_in_id", text.format(name)) for name in found])


def page(limit: int, offset: int) -> tuple[int, int]:
    """Limit and offset of a list within the allowed ranges."""
    return min(limit, LARGEST_LIMIT) if limit > 0 else DEFAULT_LIMIT, max(offset, 0)
