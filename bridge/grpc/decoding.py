"""Decodes gRPC requests: large ones one after the other, and undecodable ones are answered INVALID_ARGUMENT.

grpc.aio itself would answer UNKNOWN with the text of protobuf's exception, and log a traceback for each. It would also
decode all requests that have arrived in one turn of the event loop; eight of 4 MiB take a fifth of a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from bridge.grpc.encoding import unless_bytes
from bridge.grpc.refusal_pace import RefusalPace
from bridge.grpc.refusals import CallRefused, abort, invalid, refuse
from streams.turns import Turns

# Bytes of a request above which it waits for a turn of its own to be decoded.
SMALL_REQUEST_BYTES = 64 * 1024
# The work of gRPC to receive a request, which nobody can measure here. It counts as heavy work too: a client that sends
# requests as fast as they are refused would else keep the process busy with their bytes.
RECEIVING_SECONDS_PER_BYTE = 5e-9
CODE = "request_undecodable"
MESSAGE = "the request's bytes are no message of this call, or nest deeper than protobuf reads (100 messages)"
_UNDECODABLE = object()

# Returns the refusal of a request of so many bytes; None to decode it.
TooLarge = Callable[[int], CallRefused | None]
# Returns an object that stands for a large request until the servicer decodes it; None to decode it at once.
HeldBack = Callable[[bytes], Any]
# A method handler; generated ones have no types.
Handler = Any


class RequestDecoding(grpc.aio.ServerInterceptor):
    """Answers undecodable and too large requests before they reach the servicer."""

    def __init__(
        self,
        turns: Turns,
        refusals: RefusalPace,
        too_large: Mapping[str, TooLarge],
        held_back: Mapping[str, HeldBack] | None = None,
    ) -> None:
        """`too_large`: the limit of each method that has one below gRPC's own.

        `held_back`: of each method whose large requests the servicer itself decodes.
        """
        self._turns = turns
        self._refusals = refusals
        self._too_large = too_large
        self._held_back = held_back or {}
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
            guarded = self._guard(handler, handler_call_details.method)
            self._guarded[handler_call_details.method] = handler, guarded
        return guarded

    def _guard(self, handler: Handler, method: str) -> Handler:
        if handler.request_streaming and not handler.response_streaming:
            return handler
        decode = _decoder(handler.request_deserializer)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _both(handler.stream_stream), decode, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream), decode, handler.response_serializer
            )
        too_large, held_back = self._too_large.get(method), self._held_back.get(method)
        unary = _unary(handler.unary_unary, decode, self._turns, self._refusals, too_large, held_back)
        return grpc.unary_unary_rpc_method_handler(unary, None, unless_bytes(handler.response_serializer))


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _UNDECODABLE

    return decoded


def _unary(
    call: Callable[[Any, Any], Awaitable[Any]],
    decode: Callable[[bytes], Any],
    turns: Turns,
    refusals: RefusalPace,
    too_large: TooLarge | None,
    held_back: HeldBack | None,
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def unary(data: bytes, context: Any) -> Any:
        if len(data) > SMALL_REQUEST_BYTES:
            turns.owe(len(data) * RECEIVING_SECONDS_PER_BYTE)
            if too_large is not None and (refusal := too_large(len(data))) is not None:
                del data  # eight callers' are 32 MiB
                await refusals.next()
                refuse(context, refusal)
                return None
            await turns.next()
        request = None if held_back is None else held_back(data)
        if request is None:
            request = decode(data)
        if request is _UNDECODABLE:
            refuse(context, invalid(CODE, MESSAGE))
            return None
        del data
        return await call(request, context)

    return unary


def _both(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def requests(given: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in given:
            if request is _UNDECODABLE:
                await abort(context, invalid(CODE, MESSAGE))
            yield request

    async def both(given: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for response in _responses(call(requests(given, context), context)):
            yield response

    return both


def _stream(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        if request is _UNDECODABLE:
            await abort(context, invalid(CODE, MESSAGE))
        async for response in _responses(call(request, context)):
            yield response

    return stream


async def _responses(called: AsyncIterator[Any] | Awaitable[None]) -> AsyncIterator[Any]:
    """Pass on the responses of a call; one that is only awaited writes them itself, as `Watch` of health does."""
    if isinstance(called, AsyncIterator):
        async for response in called:
            yield response
    else:
        await called
