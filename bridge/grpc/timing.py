"""Counts and times the calls of the service, forwarding included; only the redaction of answers comes later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from bridge.grpc import metrics
from ports.clock import Clock

# A method handler; generated ones have no types.
Handler = Any
# Names of the statuses by number, which a context of grpc.aio gives, and by status, which its interface promises.
_NAMES: dict[Any, str] = {0: "OK", None: "OK"}
for _status in grpc.StatusCode:
    _NAMES[_status] = _NAMES[_status.value[0]] = _status.name


class CallTiming(grpc.aio.ServerInterceptor):
    """Times the methods of one service; names of others are callers' texts and must not become labels."""

    def __init__(self, service: str, clock: Clock) -> None:
        self._prefix = f"/{service}/"
        self._clock = clock
        self._known: dict[str, tuple[Handler, Handler]] = {}
        """By method: its last handler and the timed one."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        known, timed = self._known.get(method, (None, None))
        if known is not handler:
            timed = self._timed(handler, method.removeprefix(self._prefix))
            self._known[method] = handler, timed
        return timed

    def _timed(self, handler: Handler, method: str) -> Handler:
        if handler.request_streaming:
            return handler
        decode, encode = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            stream = _counted_stream(handler.unary_stream, method)
            return grpc.unary_stream_rpc_method_handler(stream, decode, encode)
        unary = _timed_unary(handler.unary_unary, method, self._clock)
        return grpc.unary_unary_rpc_method_handler(unary, decode, encode)


def _timed_unary(
    call: Callable[[Any, Any], Awaitable[Any]], method: str, clock: Clock
) -> Callable[[Any, Any], Awaitable[Any]]:
    seconds, monotonic = metrics.SECONDS.of(method), clock.monotonic

    async def unary(request: Any, context: Any) -> Any:
        began, ending = monotonic(), "OK"
        try:
            return await call(request, context)
        except BaseException as error:
            ending = _ending_by(error)
            raise
        finally:
            seconds.add(monotonic() - began)
            _count(method, context, ending)

    return unary


def _counted_stream(
    call: Callable[[Any, Any], AsyncIterator[Any]], method: str
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        ending = "OK"
        try:
            async for answer in call(request, context):
                yield answer
        except BaseException as error:
            ending = _ending_by(error)
            raise
        finally:
            _count(method, context, ending)

    return stream


def _ending_by(error: BaseException) -> str:
    """The status of a call that this error ended. gRPC cancels the handler of a client that is gone or timed out."""
    return "CANCELLED" if isinstance(error, asyncio.CancelledError | GeneratorExit) else "UNKNOWN"


def _count(method: str, context: Any, ending: str) -> None:
    """Count a call; the status that its handler set is the better one, unless the client did not wait for it."""
    known = _NAMES.get(context.code(), "UNKNOWN")
    metrics.CALLS.labels(method, ending if known == "OK" or ending == "CANCELLED" else known).inc()
