"""Forwards a call about an instance to the worker that owns the instance, at most once.

The forwarder knows no single method: every request that names an instance goes to the owner, with its bytes, metadata
and remaining time. The answer's bytes, status and trailing metadata go back to the client.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.peers import Peers
from bridge.grpc.refusals import abort, details_and_trailers, end, refusal_of, refuse
from streams.api import HERE, Directory, Unavailable

log = structlog.get_logger(__name__)

# Metadata of a forwarded call; its receiver answers it or refuses it, and never forwards it again.
FORWARDED = "x-ceremony-forwarded"
# Deadline of a forwarded call whose client set none; a stream without a deadline gets none.
CALL_SECONDS = 30.0
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
Context = grpc.aio.ServicerContext[Any, Any]


def instance_of(method: str, request: Any) -> str:
    """Return the id of the instance that a request is about; empty when it is about none or names none."""
    if (named := INSTANCE_OF.get(method)) is not None:
        return named(request)
    if method in ANY_WORKER or "instance_id" not in request.DESCRIPTOR.fields_by_name:
        return ""
    return str(request.instance_id)


class Forwarding(grpc.aio.ServerInterceptor):
    """Forwards the calls of one service; `new_id` makes a request id for an operation without one."""

    def __init__(self, service: str, directory: Directory, peers: Peers, new_id: Callable[[], str]) -> None:
        self._prefix = f"/{service}/"
        self._directory = directory
        self._peers = peers
        self._new_id = new_id

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
        serialize = _unless_bytes(handler.response_serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream), handler.request_deserializer, serialize
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary), handler.request_deserializer, serialize
        )

    def _unary(self, method: str, local_call: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def unary(request: Any, context: Context) -> Any:
            try:
                owner = self._owner(method, request)
            except Unavailable as error:
                refuse(context, error)
                return None
            if owner == HERE:
                return await local_call(request, context)
            return await self._forward(owner, method, request, context)

        return unary

    def _stream(self, method: str, local_call: Callable[[Any, Context], AsyncIterator[Any]]) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                owner = self._owner(method, request)
            except Unavailable as error:
                await abort(context, error)
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

    async def _forward(self, owner: str, method: str, request: Any, context: Context) -> bytes | None:
        self._ensure_request_id(request)
        left: float | None = context.time_remaining()  # None without a deadline, despite its type
        call = self._peers.unary(owner, method)(
            request.SerializeToString(),
            timeout=CALL_SECONDS if left is None else left,
            metadata=self._metadata(context),
        )
        try:
            response: bytes = await call
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
        except grpc.aio.AioRpcError as error:
            end(context, *ending_of_owner(error, request))
            return None
        context.set_trailing_metadata(tuple(await call.trailing_metadata()))
        return response

    async def _forward_stream(self, owner: str, method: str, request: Any, context: Context) -> AsyncIterator[bytes]:
        call = self._peers.stream(owner, method)(
            request.SerializeToString(), timeout=context.time_remaining(), metadata=self._metadata(context)
        )
        try:
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
            async for response in call:
                yield response
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await context.abort(*ending_of_owner(error, request))
        finally:
            call.cancel()

    def _ensure_request_id(self, request: Any) -> None:
        """Give an operation a request id, so that the client can repeat it when the answer is lost."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = self._new_id()

    def _metadata(self, context: Context) -> list[tuple[str, str | bytes]]:
        kept = [pair for pair in context.invocation_metadata() or () if not HOP_BY_HOP.match(pair[0])]
        return [*kept, (FORWARDED, "1")]


def ending_of_owner(error: grpc.aio.AioRpcError, request: Any) -> tuple[grpc.StatusCode, str, tuple[Any, ...]]:
    """Status, message and trailing metadata of the owner's answer; UNAVAILABLE when the connection to it broke."""
    details = error.details() or ""
    if error.code() in CONNECTION_STATUSES and not STARTS_WITH_CODE.match(details):
        log.warning("forwarding_failed", status=error.code().name, reason=details)
        request_id = getattr(request, "request_id", "")
        again = f"; ask again with request_id {request_id!r}" if request_id else ""
        refusal = refusal_of(Unavailable(f"the owner of this ceremony did not answer{again}"))
        return refusal.status, *details_and_trailers(refusal)
    return error.code(), details, tuple(error.trailing_metadata() or ())


def _unless_bytes(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Send bytes from another worker unchanged; serialise everything else."""
    return lambda response: response if isinstance(response, bytes) else serialize(response)


# Methods of the service with their request types; a test checks that each is covered above.
METHODS = tuple(pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"].methods_by_name.values())
