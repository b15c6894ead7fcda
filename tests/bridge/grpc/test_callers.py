"""A caller has one heavy read at a time, and waits for no other caller's."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from bridge.grpc.callers import FORWARDED, Callers, one_at_a_time

pytestmark = pytest.mark.asyncio


class Peer:
    def __init__(self, name: str, client: str = "") -> None:
        self._name = name
        self._client = client

    def peer(self) -> str:
        return self._name

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ((FORWARDED, self._client),) if self._client else ()


class Reads:
    """A servicer whose call ends when the test lets it."""

    def __init__(self) -> None:
        self.callers = Callers()
        self.running: list[str] = []
        self.go_on = asyncio.Event()

    @one_at_a_time
    async def call(self, request: str, context: Any) -> str:
        self.running.append(request)
        await self.go_on.wait()
        self.running.remove(request)
        return request


async def test_a_second_read_of_a_connection_waits_and_one_of_another_connection_does_not() -> None:
    # specification 14.20
    reads, one, other = Reads(), Peer("ipv4:1.1.1.1:1"), Peer("ipv4:1.1.1.1:2")
    calls = [
        asyncio.create_task(reads.call(request, peer))
        for request, peer in (("first", one), ("second", one), ("third", one), ("others", other))
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert reads.running == ["first", "others"]
    calls[1].cancel()
    reads.go_on.set()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [done[0], *done[2:]] == ["first", "third", "others"]


async def test_a_client_does_not_wait_for_others_whose_calls_are_forwarded_by_the_same_worker() -> None:
    # specification 14.20
    reads = Reads()
    peers = [Peer("ipv4:1.1.1.1:1", client) for client in ("ipv4:2.2.2.2:1", "ipv4:2.2.2.2:1", "ipv4:2.2.2.2:2")]
    calls = [asyncio.create_task(reads.call(str(number), peer)) for number, peer in enumerate(peers)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert reads.running == ["0", "2"]
    reads.go_on.set()
    await asyncio.gather(*calls)


async def test_callers_that_have_gone_leave_nothing_behind() -> None:
    reads = Reads()
    reads.go_on.set()
    await asyncio.gather(*(reads.call("x", Peer(f"ipv4:1.1.1.1:{port}")) for port in range(100)))
    gc.collect()
    assert len(reads.callers._locks) == 0
