"""Calls about one instance are answered by the worker that owns it: a call that came to another is forwarded, once.

The forwarder knows no method: whatever request names an instance goes to its owner, with the bytes, the metadata and
the time that is left; bytes, status and trailing metadata of the answer go back.
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

FORWARDED = "x-ceremony-forwarded"
"""Metadata of a forwarded call: who gets one answers for itself, or not at all."""
CALL_SECONDS = 30.0
"""For a forwarded call whose client set no deadline; a stream has none then."""
HOP_BY_HOP = re.compile(r"^(?:grpc-.*|:.*|user-agent|content-type|te)$")
CODED = re.compile(r"[a-z][a-z0-9_]*: ")
"""How the details of every status of ours begin; others come from the way to the owner."""
LOST_STATUS = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)
LONGEST_ID = 257
"""Characters of an instance id; a longer one names nothing, and nobody owns it."""

INSTANCE_OF: Mapping[str, Callable[[Any], str]] = {
    "StartPlanningCeremony": lambda request: f"{request.ceremony_id}:{request.story_id}",
}
"""Methods whose instance is not the field `instance_id`."""
ANYWHERE = frozenset(
    {"ListPlanningCeremonyInstances", "ListDeadLetters", "ListDefinitions", "ShowDeadLetter", "ReplayDeadLetter"}
)
"""Methods about no single instance: whoever is asked answers (a list asks the owners itself)."""

Handler = Any
"""A method handler; generated ones have no types."""
Context = grpc.aio.ServicerContext[Any, Any]


def instance_of(method: str, request: Any) -> str:
    """The instance a request is about; empty where it is about none, or names none."""
    if (named := INSTANCE_OF.get(method)) is not None:
        return named(request)
    if method in ANYWHERE or "instance_id" not in request.DESCRIPTOR.fields_by_name:
        return ""
    return str(request.instance_id)


class Forwarding(grpc.aio.ServerInterceptor):
    """Forwards the calls of one service; `new_id` draws a request id for an operation that brings none."""

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

    def _unary(self, method: str, here: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def unary(request: Any, context: Context) -> Any:
            try:
                owner = self._owner(method, request)
            except Unavailable as error:
                refuse(context, error)
                return None
            if owner == HERE:
                return await here(request, context)
            return await self._forward(owner, method, request, context)

        return unary

    def _stream(self, method: str, here: Callable[[Any, Context], AsyncIterator[Any]]) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                owner = self._owner(method, request)
            except Unavailable as error:
                await abort(context, error)
            forwarded = self._forward_stream(owner, method, request, context)
            async for response in here(request, context) if owner == HERE else forwarded:
                yield response

        return stream

    def _owner(self, method: str, request: Any) -> str:
        """HERE, or the owner's address. Raises Unavailable where nobody owns the instance."""
        instance_id = instance_of(method.removeprefix(self._prefix), request)
        if not instance_id or len(instance_id) > LONGEST_ID:
            return HERE
        return self._directory.where(self._directory.partition_of(instance_id))

    async def _forward(self, owner: str, method: str, request: Any, context: Context) -> bytes | None:
        self._name(request)
        left: float | None = context.time_remaining()  # None without a deadline, whatever its type says
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

    def _name(self, request: Any) -> None:
        """An operation without a request id gets one here: if its answer is lost, the client can ask for it again."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = self._new_id()

    def _metadata(self, context: Context) -> list[tuple[str, str | bytes]]:
        kept = [pair for pair in context.invocation_metadata() or () if not HOP_BY_HOP.match(pair[0])]
        return [*kept, (FORWARDED, "1")]


def ending_of_owner(error: grpc.aio.AioRpcError, request: Any) -> tuple[grpc.StatusCode, str, tuple[Any, ...]]:
    """How the owner ended the call: status, message, trailing metadata; UNAVAILABLE where the way to it broke."""
    details = error.details() or ""
    if error.code() in LOST_STATUS and not CODED.match(details):
        log.warning("forwarding_failed", status=error.code().name, reason=details)
        request_id = getattr(request, "request_id", "")
        again = f"; ask again with request_id {request_id!r}" if request_id else ""
        refusal = refusal_of(Unavailable(f"the owner of this ceremony did not answer{again}"))
        return refusal.status, *details_and_trailers(refusal)
    return error.code(), details, tuple(error.trailing_metadata() or ())


def _unless_bytes(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """What another worker has serialised goes out as it is."""
    return lambda response: response if isinstance(response, bytes) else serialize(response)


METHODS = tuple(pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"].methods_by_name.values())
"""Of the service, with their request types: a test holds each to one of the ways above."""
