"""Calls of the service are counted by method and status, and timed; names of other methods are no labels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest
from prometheus_client import REGISTRY

from bridge.grpc.timing import CallTiming
from tests.streams.fakes import HandClock

pytestmark = pytest.mark.asyncio


class Details(NamedTuple):
    method: str


class Context:
    """The part of a call's context that is read, with a number as grpc.aio gives it."""

    def __init__(self, code: Any = 0) -> None:
        self.number = code

    def code(self) -> Any:
        return self.number


async def intercepted(timing: CallTiming, method: str, handler: Any) -> Any:
    async def continuation(_details: Any) -> Any:
        return handler

    details: Any = Details(method)
    return await timing.intercept_service(continuation, details)


def calls(method: str, code: str) -> float:
    return REGISTRY.get_sample_value("ceremony_rpc_total", {"method": method, "code": code}) or 0


def seconds(method: str) -> float:
    return REGISTRY.get_sample_value("ceremony_rpc_seconds_sum", {"method": method}) or 0


@pytest.mark.parametrize(
    ("code", "name"),
    [(0, "OK"), (None, "OK"), (14, "UNAVAILABLE"), (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), (99, "UNKNOWN")],
)
async def test_a_call_is_counted_with_its_status_and_its_time(code: Any, name: str) -> None:
    # specification 29.3
    clock = HandClock()

    async def call(request: Any, _context: Any) -> Any:
        clock.seconds += 2
        return request

    handler = grpc.unary_unary_rpc_method_handler(call, bytes, bytes)
    timed = await intercepted(CallTiming("fleet.S", clock), "/fleet.S/Timed", handler)
    before = calls("Timed", name), seconds("Timed")
    assert await timed.unary_unary("question", Context(code)) == "question"
    assert (calls("Timed", name), seconds("Timed")) == (before[0] + 1, before[1] + 2)


async def test_a_call_that_is_aborted_is_counted_too() -> None:
    async def call(_request: Any, _context: Any) -> Any:
        raise grpc.aio.AbortError

    handler = grpc.unary_unary_rpc_method_handler(call, bytes, bytes)
    timed = await intercepted(CallTiming("fleet.S", HandClock()), "/fleet.S/Aborted", handler)
    with pytest.raises(grpc.aio.AbortError):
        await timed.unary_unary("question", Context(5))
    assert calls("Aborted", "NOT_FOUND") == 1


ENDINGS = [(asyncio.CancelledError, "CANCELLED"), (ValueError, "UNKNOWN")]


@pytest.mark.parametrize(("error", "name"), ENDINGS)
async def test_a_call_that_an_error_ends_is_not_counted_as_ok(error: type[BaseException], name: str) -> None:
    # specification 29.3
    async def call(_request: Any, _context: Any) -> Any:
        raise error

    handler = grpc.unary_unary_rpc_method_handler(call, bytes, bytes)
    timed = await intercepted(CallTiming("fleet.S", HandClock()), "/fleet.S/Ended", handler)
    before = calls("Ended", name)
    with pytest.raises(error):
        await timed.unary_unary("question", Context())
    assert (calls("Ended", name), calls("Ended", "OK")) == (before + 1, 0)


@pytest.mark.parametrize(("error", "name"), ENDINGS)
async def test_a_stream_that_an_error_ends_is_not_counted_as_ok(error: type[BaseException], name: str) -> None:
    async def call(_request: Any, _context: Any) -> AsyncIterator[str]:
        yield "a"
        raise error

    handler = grpc.unary_stream_rpc_method_handler(call, bytes, bytes)
    timed = await intercepted(CallTiming("fleet.S", HandClock()), "/fleet.S/Broken", handler)
    with pytest.raises(error):
        _ = [one async for one in timed.unary_stream("question", Context())]
    assert (calls("Broken", name), calls("Broken", "OK")) == (1, 0)


async def test_a_stream_that_its_client_leaves_is_counted_as_cancelled() -> None:
    async def call(_request: Any, _context: Any) -> AsyncIterator[str]:
        yield "a"
        yield "b"

    handler = grpc.unary_stream_rpc_method_handler(call, bytes, bytes)
    timed = await intercepted(CallTiming("fleet.S", HandClock()), "/fleet.S/Left", handler)
    stream = timed.unary_stream("question", Context())
    assert await anext(stream) == "a"
    await stream.aclose()
    assert (calls("Left", "CANCELLED"), calls("Left", "OK")) == (1, 0)


async def test_a_call_whose_client_times_out_is_counted_as_cancelled() -> None:
    # specification 29.3
    ended = asyncio.Event()

    async def call(_request: bytes, _context: Any) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    server = grpc.aio.server(interceptors=[CallTiming("fleet.S", HandClock())])
    handlers: Any = {"Slow": grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fleet.S", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        question: Any = channel.unary_unary("/fleet.S/Slow")
        with pytest.raises(grpc.aio.AioRpcError):
            await question(b"", timeout=0.3, wait_for_ready=True)
        await asyncio.wait_for(ended.wait(), 20)
    await server.stop(None)
    assert (calls("Slow", "CANCELLED"), calls("Slow", "OK")) == (1, 0)


async def test_a_stream_is_counted_as_it_ends_and_not_timed() -> None:
    async def call(_request: Any, _context: Any) -> AsyncIterator[str]:
        yield "a"
        yield "b"

    handler = grpc.unary_stream_rpc_method_handler(call, bytes, bytes)
    timed = await intercepted(CallTiming("fleet.S", HandClock()), "/fleet.S/Watched", handler)
    assert [one async for one in timed.unary_stream("question", Context())] == ["a", "b"]
    assert calls("Watched", "OK") == 1
    assert REGISTRY.get_sample_value("ceremony_rpc_seconds_count", {"method": "Watched"}) is None


async def test_methods_of_other_services_pass_untouched() -> None:
    handler = grpc.unary_unary_rpc_method_handler(lambda *_: None, bytes, bytes)
    timing = CallTiming("fleet.S", HandClock())
    assert await intercepted(timing, "/any.Caller/Text", handler) is handler
    assert await intercepted(timing, "/fleet.S/Missing", None) is None


async def test_the_timing_of_a_method_is_made_once_for_its_handler() -> None:
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda *_: None)
    timing = CallTiming("fleet.S", HandClock())
    first = await intercepted(timing, "/fleet.S/Once", handler)
    assert await intercepted(timing, "/fleet.S/Once", handler) is first
