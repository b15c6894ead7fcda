"""A method's guard against undecodable requests is made once, and again for a new handler."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import grpc
import pytest

from bridge.clock import HostClock
from bridge.grpc.decoding import RECEIVING_SECONDS_PER_BYTE, RequestDecoding
from bridge.grpc.refusal_pace import MOST_WAITING, REFUSAL_SECONDS, RefusalPace
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


class RestsCounted(HostClock):
    """Rests for a turn of the loop only, and counts the rests."""

    def __init__(self) -> None:
        self.rests: list[float] = []
        self.most = self._now = 0

    async def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self._now += 1
        self.most = max(self.most, self._now)
        await super().sleep(0)
        self._now -= 1


def decoding() -> RequestDecoding:
    clock = HostClock()
    return RequestDecoding(Turns(clock), RefusalPace(clock), {})


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
    interceptor, start, get = decoding(), handler(), handler()
    first = await guarded(interceptor, "/a/Start", start)
    assert await guarded(interceptor, "/a/Start", start) is first
    assert await guarded(interceptor, "/a/Get", get) is not first
    assert await guarded(interceptor, "/a/Start", start) is first


async def test_a_new_handler_gets_a_new_guard_and_an_unknown_method_is_not_remembered() -> None:
    interceptor = decoding()
    first = await guarded(interceptor, "/a/Start", handler())
    assert await guarded(interceptor, "/a/Start", handler()) is not first
    assert await guarded(interceptor, "/a/None", None) is None
    assert list(interceptor._guarded) == ["/a/Start"]


@pytest.mark.parametrize("callers", [8, MOST_WAITING + 3])
async def test_refusals_of_large_requests_wait_for_each_other_and_take_no_turn(
    callers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those above the number that may wait are sent at once."""
    # specification 14.20
    clock, context, turns = RestsCounted(), Context(), Turns(HostClock())
    monkeypatch.setattr(Turns, "next", lambda _: pytest.fail("took a turn"))
    refusal = invalid("inputs_too_large", "too large")
    interceptor = RequestDecoding(turns, RefusalPace(clock), {"/a/Start": lambda _size: refusal})
    start = (await guarded(interceptor, "/a/Start", handler())).unary_unary
    data = b"x" * 4_000_000
    await asyncio.gather(*(start(data, context) for _ in range(callers)))
    assert context.ended == callers
    assert clock.rests == [REFUSAL_SECONDS] * min(callers, MOST_WAITING)
    assert clock.most == 1


async def test_the_work_of_receiving_a_large_request_is_counted_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.20
    owed: list[float] = []
    turns = Turns(HostClock())
    monkeypatch.setattr(turns, "owe", owed.append)
    interceptor = RequestDecoding(turns, RefusalPace(RestsCounted()), {})
    start = (await guarded(interceptor, "/a/Start", handler())).unary_unary
    await start(b"x" * 1_000_000, Context())
    assert owed == [1_000_000 * RECEIVING_SECONDS_PER_BYTE]
