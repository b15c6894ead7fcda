"""Answers undecodable gRPC requests with INVALID_ARGUMENT, like every other mistake of a client.

grpc.aio itself would answer UNKNOWN with the text of protobuf's exception, and log a traceback for each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from bridge.grpc.refusals import end

CODE = "request_undecodable"
MESSAGE = "the request's bytes are no message of this call, or nest deeper than protobuf reads (100 messages)"
_UNDECODABLE = object()

# A method handler; generated ones have no types.
Handler = Any


class RequestDecoding(grpc.aio.ServerInterceptor):
    """Answers undecodable requests before they reach the servicer."""

    def __init__(self) -> None:
        self._guarded: dict[str, tuple[Handler, Handler]] = {}
        """By method: its last handler and the guarded handler. gRPC asks for a handler at each call, and making one
        each time took a fifteenth of the main thread in a storm of starts."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method; its name is not remembered
            return None
        known, guarded = self._guarded.get(handler_call_details.method, (None, None))
        if known is not handler:
            guarded = _guard(handler)
            self._guarded[handler_call_details.method] = handler, guarded
        return guarded


def _guard(handler: Handler) -> Handler:
    if handler.request_streaming and not handler.response_streaming:
        return handler
    decode = _decoder(handler.request_deserializer)
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(_both(handler.stream_stream), decode, handler.response_serializer)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_stream(handler.unary_stream), decode, handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary), decode, handler.response_serializer)


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _UNDECODABLE

    return decoded


def _unary(call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def unary(request: Any, context: Any) -> Any:
        if request is _UNDECODABLE:
            end(context, grpc.StatusCode.INVALID_ARGUMENT, f"{CODE}: {MESSAGE}")
            return None
        return await call(request, context)

    return unary


def _both(call: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def requests(given: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in given:
            if request is _UNDECODABLE:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{CODE}: {MESSAGE}")
            yield request

    async def both(given: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for response in call(requests(given, context), context):
            yield response

    return both


def _stream(call: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        if request is _UNDECODABLE:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{CODE}: {MESSAGE}")
        async for response in call(request, context):
            yield response

    return stream
