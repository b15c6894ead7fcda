"""Forwards a call about an instance to the worker that owns the instance; its receiver never forwards it again.

The forwarder knows no single method: every request that names an instance goes to the owner, with its bytes, metadata
and remaining time. The answer's bytes, status and trailing metadata go back to the client. An owner that is frozen does
not answer: the forwarder looks again for the owner while it waits, goes on to a new one, and gives up in time for the
client to ask again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.callers import FORWARDED
from bridge.grpc.encoding import unless_bytes
from bridge.grpc.metadata import ascii_value
from bridge.grpc.peers import Peers
from bridge.grpc.refusals import abort, details_and_trailers, end, refusal_of, refuse
from ports.clock import Clock
from streams.api import HERE, Directory, Unavailable

log = structlog.get_logger(__name__)

# Deadline of a forwarded call, and of the first answer of a stream. An owner answers an operation within 2 s.
ANSWER_SECONDS = 2.8
# Deadlines of the methods that read long; they end before if the owner loses the instance.
LONG_SECONDS = {"GetHistory": 12.0, "Diagnose": 8.0}
# Interval of the looks for another owner while a call, or a stream, is unanswered.
LOOK_SECONDS, LOOK_AT_STREAM_SECONDS = 0.1, 1.0
HOP_BY_HOP = re.compile(r"^(?:grpc-.*|:.*|user-agent|content-type|te)$")
# Start of the details of every status that a worker sets; other statuses come from the connection to the owner.
STARTS_WITH_CODE = re.compile(r"[a-z][a-z0-9_]*: ")
# Statuses of a broken connection to the owner.
CONNECTION_STATUSES = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)
# Characters of an instance id; a longer id names no instance, so it has no owner.
LONGEST_ID = 257

# Methods whose request has no field `instance_id` but names an instance.
INSTANCE_OF: Mapping[str, Callable[[Any], str]] = {
    "StartPlanningCeremony": lambda request: f"{request.ceremony_id}:{request.story_id}",
}
# Methods about no single instance: any worker answers them (a list asks the owners by itself).
ANY_WORKER = frozenset(
    {"ListPlanningCeremonyInstances", "ListDeadLetters", "ListDefinitions", "ShowDeadLetter", "ReplayDeadLetter"}
)

# A method handler; generated ones have no types.
Handler = Any
Context = grpc.aio.ServicerContext


def instance_of(method: str, request: Any) -> str:
    """Return the id of the instance that a request is about; empty when it is about none or names none."""
    if (named := INSTANCE_OF.get(method)) is not None:
        return named(request)
    if method in ANY_WORKER or "instance_id" not in request.DESCRIPTOR.fields_by_name:
        return ""
    return str(request.instance_id)


class Forwarding(grpc.aio.ServerInterceptor):
    """Forwards the calls of one service; `new_id` makes a request id for an operation without one."""

    def __init__(
        self, service: str, directory: Directory, peers: Peers, new_id: Callable[[], str], clock: Clock
    ) -> None:
        self._prefix = f"/{service}/"
        self._directory = directory
        self._peers = peers
        self._new_id = new_id
        self._clock = clock

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or handler.request_streaming or not method.startswith(self._prefix):
            return handler
        if any(key == FORWARDED for key, _ in handler_call_details.invocation_metadata or ()):
            return handler
        serialize = unless_bytes(handler.response_serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream), handler.request_deserializer, serialize
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary), handler.request_deserializer, serialize
        )

    def _unary(self, method: str, local_call: Callable[[Any, Context[Any, Any]], Awaitable[Any]]) -> Any:
        async def unary(request: Any, context: Context[Any, Any]) -> Any:
            try:
                owner = self._owner(method, request)
            except Unavailable as error:
                self._ensure_request_id(request)
                request_id = getattr(request, "request_id", "")
                refuse(context, error.repeatable_under(request_id) if request_id else error, request)
                return None
            if owner != HERE:
                self._ensure_request_id(request)
                call = await self._answered(owner, method, request, context)
                if call is not None:
                    return await self._pass_on(call, request, context)
            return await local_call(request, context)

        return unary

    def _stream(self, method: str, local_call: Callable[[Any, Context[Any, Any]], AsyncIterator[Any]]) -> Any:
        async def stream(request: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
            try:
                owner = self._owner(method, request)
            except Unavailable as error:
                await abort(context, error, request)
            forwarded = self._forward_stream(owner, method, request, context)
            async for response in local_call(request, context) if owner == HERE else forwarded:
                yield response

        return stream

    def _owner(self, method: str, request: Any) -> str:
        """HERE, or the owner's address. Raises Unavailable when the instance has no owner."""
        instance_id = instance_of(method.removeprefix(self._prefix), request)
        if not instance_id or len(instance_id) > LONGEST_ID:
            return HERE
        return self._directory.address_of(self._directory.partition_of(instance_id))

    async def _answered(self, owner: str, method: str, request: Any, context: Context[Any, Any]) -> Any | None:
        """Return the call that an owner answered, or that failed with the last one; None: this worker is the owner now.

        Another owner gets the call, too. That is safe, because operations have a request id and starts an instance.
        """
        until = self._clock.monotonic() + LONG_SECONDS.get(method.removeprefix(self._prefix), ANSWER_SECONDS)
        while owner != HERE:
            call = self._peers.unary(owner, method)(
                request.SerializeToString(), timeout=self._left(until, context), metadata=self._metadata(context)
            )
            try:
                ended = self._clock.spawn(call.code(), name="forwarded-call")
                while not await self._done(ended, LOOK_SECONDS) and self._new_owner(owner, method, request) is None:
                    pass
                new = self._new_owner(owner, method, request)
                if new is None or (ended.done() and not _connection_broke(await ended, await call.details())):
                    return call
                owner = new
            finally:
                ended.cancel()
                if not call.done():
                    call.cancel()
        return None

    def _left(self, until: float, context: Context[Any, Any]) -> float:
        """Return the seconds until then, or until the client's deadline if that is earlier."""
        seconds = max(0.0, until - self._clock.monotonic())
        left: float | None = context.time_remaining()  # None without a deadline, despite its type
        return seconds if left is None else min(seconds, left)

    async def _done(self, task: asyncio.Future[Any], seconds: float) -> bool:
        try:
            async with self._clock.timeout(seconds):
                await asyncio.wait({task})
        except TimeoutError:
            pass
        return task.done()

    def _new_owner(self, owner: str, method: str, request: Any) -> str | None:
        """Return the present owner if it is another one that is known."""
        try:
            now = self._owner(method, request)
        except Unavailable:
            return None
        return None if now == owner else now

    async def _pass_on(self, call: Any, request: Any, context: Context[Any, Any]) -> bytes | None:
        try:
            response: bytes = await call
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
        except grpc.aio.AioRpcError as error:
            end(context, *ending_of_owner(error, request))
            return None
        context.set_trailing_metadata(tuple(await call.trailing_metadata()))
        return response

    async def _forward_stream(
        self, owner: str, method: str, request: Any, context: Context[Any, Any]
    ) -> AsyncIterator[bytes]:
        call = self._peers.stream(owner, method)(
            request.SerializeToString(), timeout=context.time_remaining(), metadata=self._metadata(context)
        )
        reading = self._clock.spawn(call.read(), name="forwarded-stream")
        try:
            if not await self._done(reading, ANSWER_SECONDS):
                await abort(context, _unanswered(request), request)
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
            while (response := await self._next(reading, owner, method, request, context)) is not grpc.aio.EOF:
                yield response
                reading = self._clock.spawn(call.read(), name="forwarded-stream")
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await context.abort(*ending_of_owner(error, request))
        finally:
            reading.cancel()
            call.cancel()

    async def _next(
        self, reading: asyncio.Future[Any], owner: str, method: str, request: Any, context: Context[Any, Any]
    ) -> Any:
        """Return the next answer of a stream; end the stream once the instance has another owner."""
        while not await self._done(reading, LOOK_AT_STREAM_SECONDS):
            if self._new_owner(owner, method, request) is not None:
                await abort(context, _unanswered(request), request)
        return await reading

    def _ensure_request_id(self, request: Any) -> None:
        """Give an operation a request id, so that the client can repeat it when the answer is lost."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = self._new_id()

    def _metadata(self, context: Context[Any, Any]) -> list[tuple[str, str | bytes]]:
        kept = [pair for pair in context.invocation_metadata() or () if not HOP_BY_HOP.match(pair[0])]
        return [*kept, (FORWARDED, ascii_value(context.peer()))]


def ending_of_owner(error: grpc.aio.AioRpcError, request: Any) -> tuple[grpc.StatusCode, str, tuple[Any, ...]]:
    """Status, message and trailing metadata of the owner's answer; UNAVAILABLE when the connection to it broke."""
    details = error.details() or ""
    if _connection_broke(error.code(), details):
        log.warning("forwarding_failed", status=error.code().name, reason=details)
        refusal = refusal_of(_unanswered(request))
        return refusal.status, *details_and_trailers(refusal, request)
    return error.code(), details, tuple(error.trailing_metadata() or ())


def _connection_broke(status: grpc.StatusCode, details: str | None) -> bool:
    """Return whether a status comes from the connection to the owner, not from the owner."""
    return status in CONNECTION_STATUSES and not STARTS_WITH_CODE.match(details or "")


def _unanswered(request: Any) -> Unavailable:
    request_id = getattr(request, "request_id", "")
    again = f"; ask again with request_id {request_id!r}" if request_id else ""
    return Unavailable(f"the owner of this ceremony did not answer{again}")


# Methods of the service with their request types; a test checks that each is covered above.
METHODS = tuple(pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"].methods_by_name.values())
