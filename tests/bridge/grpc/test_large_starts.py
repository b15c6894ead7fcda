"""Large start requests are decoded and converted one at a time, the connections in turn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from google.protobuf.struct_pb2 import Value

from bridge.clock import HostClock
from bridge.grpc import servicer, start_request
from bridge.grpc.forwarding import instance_of
from bridge.grpc.large_starts import LARGE_START_BYTES, EncodedStart, LargeStarts
from bridge.grpc.refusals import CallRefused
from bridge.grpc.server import START
from streams.turns import Turns
from tests.bridge.grpc.world import definitions_folder, refused
from tests.e2e.world import World
from tests.loop_turns import LoopTurns

CALLERS = 8
VALUES = 50_000


class Peer:
    def __init__(self, name: str) -> None:
        self._name = name

    def peer(self) -> str:
        return self._name

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


def large(ceremony_id: str = "") -> pb.StartPlanningCeremonyRequest:
    """A valid request of more than 256 KiB."""
    request = pb.StartPlanningCeremonyRequest(
        ceremony_id=ceremony_id or f"c-{uuid4().hex[:12]}",
        story_id="S1",
        definition_name="selecting",
        requested_by="anna",
    )
    request.inputs_json.fields["payload"].list_value.values.extend([Value(number_value=1)] * VALUES)
    assert len(request.SerializeToString()) > LARGE_START_BYTES
    return request


def encoded(ceremony_id: str = "c1") -> EncodedStart:
    return EncodedStart(large(ceremony_id).SerializeToString())


# -- the request


def test_a_request_above_the_limit_stays_encoded() -> None:
    assert EncodedStart.if_large(b"x" * LARGE_START_BYTES) is None
    data = large("c1").SerializeToString()
    kept = EncodedStart.if_large(data)
    assert kept is not None
    assert kept.SerializeToString() is data
    assert kept.decoded() == large("c1")


def test_an_encoded_start_names_its_instance_without_being_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.15
    monkeypatch.setattr(EncodedStart, "decoded", lambda _: pytest.fail("decoded"))
    assert instance_of("StartPlanningCeremony", encoded("c1")) == "c1:S1"


def test_an_encoded_start_takes_another_request_id() -> None:
    start, expected = encoded("c1"), large("c1")
    start.request_id = "first"
    start.request_id = expected.request_id = "second"
    assert (start.request_id, start.ceremony_id) == ("second", "c1")
    assert start.decoded() == expected


@pytest.mark.parametrize("data", [b"\xff" * 10, b"\x0a\x02\xff\xfe"], ids=["no message", "no UTF-8"])
def test_bytes_that_are_no_message_name_no_ceremony_and_are_refused(data: bytes) -> None:
    assert EncodedStart(data).ceremony_id == ""
    with pytest.raises(CallRefused, match="request_undecodable"):
        EncodedStart(data).decoded()


# -- one at a time


class Line:
    """Callers of a `LargeStarts`; each works for three turns of the loop once it has its turn."""

    def __init__(self) -> None:
        self.starts = LargeStarts(Turns(HostClock()))
        self.inside = self.most = 0
        self.order: list[str] = []

    async def caller(self, name: str, request: Any, peer: Peer) -> None:
        async with self.starts.decoded(request, peer):  # type: ignore[arg-type]  # all that it needs
            self.order.append(name)
            self.inside += 1
            self.most = max(self.most, self.inside)
            for _ in range(3):
                await asyncio.sleep(0)
            self.inside -= 1


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> LoopTurns:
    """Counts the large requests that are decoded between two turns of the loop."""
    counted, decoded = LoopTurns(), EncodedStart.decoded

    def counting(request: EncodedStart) -> pb.StartPlanningCeremonyRequest:
        counted.work()
        return decoded(request)

    monkeypatch.setattr(EncodedStart, "decoded", counting)
    return counted


@pytest.mark.asyncio
async def test_of_eight_large_requests_one_is_decoded_at_a_time(decoding: LoopTurns) -> None:
    # specification 14.20
    line = Line()
    await decoding.during(*(line.caller(str(n), encoded(), Peer(str(n))) for n in range(CALLERS)))
    assert (decoding.all, decoding.most, line.most) == (CALLERS, 1, 1)


@pytest.mark.asyncio
async def test_connections_take_turns() -> None:
    # specification 14.20
    line, many, one = Line(), Peer("many"), Peer("one")
    await asyncio.gather(
        *(line.caller(f"many {n}", encoded(), many) for n in range(CALLERS)), line.caller("one", encoded(), one)
    )
    assert line.order[:3] == ["many 0", "one", "many 1"]


@pytest.mark.asyncio
async def test_a_request_that_is_decoded_already_waits_for_no_large_one() -> None:
    line = Line()
    await asyncio.gather(line.caller("large", encoded(), Peer("a")), line.caller("small", large(), Peer("a")))
    assert line.order == ["small", "large"]


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(6), ids=lambda turns: f"after {turns} turns")
async def test_a_caller_that_goes_away_leaves_its_place(turns: int) -> None:
    # specification 14.20
    line, peer = Line(), Peer("a")
    calls = [asyncio.create_task(line.caller(str(n), encoded(), peer)) for n in range(3)]
    for _ in range(turns):
        await asyncio.sleep(0)
    calls[0].cancel()
    calls[1].cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert line.order[-1] == "2"


# -- over a real socket


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("large-starts")
    definitions = definitions_folder(folder / "definitions")
    async with World(folder, f"sqlite://{folder}/log.db", CEREMONIES_DIR=str(definitions)) as made:
        yield made


@contextlib.contextmanager
def delayed(world: World, first: str, until: Awaitable[Any]) -> Iterator[None]:
    """Let the start of this ceremony wait before the engine gets it."""
    commands = world.worker.engine.commands
    start: Callable[..., Awaitable[Any]] = commands.start

    async def later(definition: Any, command: Any) -> Any:
        if command.ceremony_id == first:
            await until
        return await start(definition, command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "start", later)
        yield


@pytest.mark.asyncio(loop_scope="module")
async def test_a_start_that_waits_for_its_partition_delays_no_other_large_start(world: World) -> None:
    # specification 14.20
    go_on = asyncio.Event()
    with delayed(world, "c-slow", go_on.wait()):
        slow = asyncio.ensure_future(world.stub.StartPlanningCeremony(large("c-slow")))
        answer = await world.stub.StartPlanningCeremony(large(), timeout=30)
        assert answer.status == "accepted" and not slow.done()
        go_on.set()
        assert (await slow).instance_id == "c-slow:S1"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_start_that_waits_for_its_partition_holds_no_decoded_request(world: World) -> None:
    go_on, waiting = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await go_on.wait()

    given = large("c-waiting")
    with delayed(world, "c-waiting", wait()):
        call = asyncio.ensure_future(world.stub.StartPlanningCeremony(given))
        await waiting.wait()
        requests = [found for found in gc.get_objects() if isinstance(found, pb.StartPlanningCeremonyRequest)]
        assert [found for found in requests if found.ceremony_id == "c-waiting" and found is not given] == []
        go_on.set()
        await call


@pytest.mark.asyncio(loop_scope="module")
async def test_a_large_start_that_is_no_message_is_refused(world: World) -> None:
    call: Any = world.channel.unary_unary(START)
    with refused("INVALID_ARGUMENT", "request_undecodable"):
        await call(b"\xff" * (LARGE_START_BYTES + 1))
    assert (await world.stub.StartPlanningCeremony(large())).status == "accepted"


@pytest.mark.asyncio(loop_scope="module")
async def test_large_starts_are_converted_one_at_a_time_also_after_one_was_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 14.20
    pieces, under_way, most = start_request.start_pieces, [0], [0]

    def counting(*args: Any, **fields: Any) -> Any:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        try:
            return (yield from pieces(*args, **fields))
        finally:
            under_way[0] -= 1

    monkeypatch.setattr(servicer, "start_pieces", counting)
    bad = large()
    bad.inputs_json.fields["bad"].CopyFrom(Value())
    good = asyncio.gather(*(world.stub.StartPlanningCeremony(large()) for _ in range(3)))
    with refused("INVALID_ARGUMENT", "inputs_invalid"):
        await world.stub.StartPlanningCeremony(bad)
    assert [answer.status for answer in await good] == ["accepted"] * 3
    assert most == [1]
