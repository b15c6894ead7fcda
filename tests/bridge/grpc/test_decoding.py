"""A method's guard against undecodable requests is made once, and again for a new handler."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
import pytest

from bridge.clock import HostClock
from bridge.grpc.decoding import RECEIVING_SECONDS_PER_BYTE, RequestDecoding
from bridge.grpc.refusals import invalid
from streams.turns import Turns

pytestmark = pytest.mark.asyncio


class Details(NamedTuple):
    method: str


class Context:
    """A context that counts the calls it ends."""

    def __init__(self) -> None:
        self.ended = 0

    def set_code(self, _code: grpc.StatusCode) -> None:
        self.ended += 1

    def set_details(self, _text: str) -> None: ...

    def set_trailing_metadata(self, _metadata: Any) -> None: ...


def handler() -> Any:
    async def call(request: Any, _context: Any) -> Any:
        return request

    return grpc.unary_unary_rpc_method_handler(call, bytes, bytes)


async def guarded(interceptor: RequestDecoding, method: str, found: Any) -> Any:
    async def continuation(_details: Any) -> Any:
        return found

    details: Any = Details(method)
    return await interceptor.intercept_service(continuation, details)


async def test_the_guard_of_a_method_is_made_once() -> None:
    interceptor, start, get = RequestDecoding(Turns(HostClock()), {}), handler(), handler()
    first = await guarded(interceptor, "/a/Start", start)
    assert await guarded(interceptor, "/a/Start", start) is first
    assert await guarded(interceptor, "/a/Get", get) is not first
    assert await guarded(interceptor, "/a/Start", start) is first


async def test_a_new_handler_gets_a_new_guard_and_an_unknown_method_is_not_remembered() -> None:
    interceptor = RequestDecoding(Turns(HostClock()), {})
    first = await guarded(interceptor, "/a/Start", handler())
    assert await guarded(interceptor, "/a/Start", handler()) is not first
    assert await guarded(interceptor, "/a/None", None) is None
    assert list(interceptor._guarded) == ["/a/Start"]


async def test_refusals_of_large_requests_are_spaced_by_the_work_of_receiving_them() -> None:
    # specification 14.20
    clock = HostClock()
    context = Context()
    refusal = invalid("inputs_too_large", "too large")
    interceptor = RequestDecoding(Turns(clock), {"/a/Start": lambda _size: refusal})
    start = (await guarded(interceptor, "/a/Start", handler())).unary_unary
    data, began = b"x" * 4_000_000, clock.monotonic()
    for _ in range(4):
        await start(data, context)
    assert context.ended == 4
    assert clock.monotonic() - began >= 3 * len(data) * RECEIVING_SECONDS_PER_BYTE * 0.9
