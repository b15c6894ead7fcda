"""The forwarder between a client and a test server as the owner: the forwarded call and its answer."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

import grpc
import grpc.aio
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import (
    PlanningCeremonyProcessorServicer,
    PlanningCeremonyProcessorStub,
    add_PlanningCeremonyProcessorServicer_to_server,
)

from bridge.clock import HostClock
from bridge.grpc import forwarding
from bridge.grpc.callers import FORWARDED
from bridge.grpc.decoding import RequestDecoding
from bridge.grpc.forwarding import ANY_WORKER, METHODS, Forwarding, instance_of
from bridge.grpc.large_starts import LARGE_START_BYTES, EncodedStart
from bridge.grpc.peers import Peers
from bridge.grpc.refusal_pace import RefusalPace
from bridge.grpc.refusals import CallRefused, details_and_trailers
from bridge.grpc.server import SERVICE, START
from streams.api import HERE, Unavailable
from streams.turns import Turns
from tests.bridge.grpc.world import refused
from tests.e2e.world import NO_RETRIES
from tests.services import free_port

Answer = Callable[[Any, Any], Awaitable[Any]]


class Servicer(PlanningCeremonyProcessorServicer):
    """Gives the configured answer, and records its calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, dict[str, Any], float | None]] = []
        self.answer: Answer = self._found

    async def _found(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("x-tail", "1"),))
        await context.send_initial_metadata((("x-head", "2"),))
        return pb.GetPlanningCeremonyInstanceResponse(success=True, message=request.instance_id)

    async def _note(self, request: Any, context: Any) -> Any:
        self.asked.append((request, dict(context.invocation_metadata()), context.time_remaining()))
        return await self.answer(request, context)

    StartPlanningCeremony = GetPlanningCeremonyInstance = DecideGate = GetHistory = _note

    async def WatchPlanningCeremony(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - gRPC's name
        if request.instance_id == "silent":
            await asyncio.sleep(30)
        for number in range(3):
            if request.instance_id == "hanging" and number == 1:
                await asyncio.sleep(30)
            yield pb.WatchPlanningCeremonyResponse(ceremony=pb.PlanningCeremonyInstance(version=number))
        context.set_trailing_metadata((("x-tail", "1"),))
        if request.instance_id == "gone":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "unavailable: moving", (("retry-after-ms", "1000"),))


class OneElsewhere:
    """A directory in which every instance has the same owner, or none."""

    partitions = 1

    def __init__(self) -> None:
        self.address = HERE

    def partition_of(self, instance_id: str) -> int:
        return 0

    def address_of(self, partition: int) -> str:
        if self.address == "nowhere":
            raise Unavailable("partition 0 is not served: moving", 1.5)
        return self.address

    def partitions_by_address(self) -> Mapping[str, Collection[int]]:
        return {self.address: [0]}

    def addresses(self) -> Collection[str]:
        return {self.address}


class Site:
    def __init__(self, directory: OneElsewhere, near: Servicer, far: Servicer, stub: Any, peers: Peers) -> None:
        self.directory, self.near, self.far, self.stub, self.peers = directory, near, far, stub, peers


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Clients call `near`; `far` owns every instance."""
    directory = OneElsewhere()
    near, far = Servicer(), Servicer()  # type: ignore[abstract]  # the other calls are not made
    peers = Peers(directory.addresses)
    forwarder = Forwarding(SERVICE, directory, peers, lambda: "drawn", HostClock())
    clock = HostClock()
    decoding = RequestDecoding(Turns(clock), RefusalPace(clock), {}, {START: EncodedStart.if_large})
    async with contextlib.AsyncExitStack() as stack:
        ports = []
        for servicer, interceptors in ((near, [decoding, forwarder]), (far, [])):
            server = grpc.aio.server(interceptors=interceptors)
            add_PlanningCeremonyProcessorServicer_to_server(servicer, server)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            stack.push_async_callback(server.stop, 0)
        directory.address = f"127.0.0.1:{ports[1]}"
        stack.push_async_callback(peers.close)
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}", options=NO_RETRIES)
        )
        yield Site(directory, near, far, PlanningCeremonyProcessorStub(channel), peers)


GET = pb.GetPlanningCeremonyInstanceRequest(instance_id="c:s")


async def started(request: Any, _context: Any) -> Any:
    return pb.StartPlanningCeremonyResponse(instance_id=f"{request.ceremony_id}:{request.story_id}")


async def test_a_large_start_is_forwarded_with_an_id_and_without_being_decoded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 14.15
    monkeypatch.setattr(EncodedStart, "decoded", lambda _: pytest.fail("decoded"))
    site.far.answer = started
    request = pb.StartPlanningCeremonyRequest(ceremony_id="c1", story_id="s1", inputs={"a": "x" * LARGE_START_BYTES})
    answer = await site.stub.StartPlanningCeremony(request)
    assert (answer.instance_id, site.near.asked) == ("c1:s1", [])
    request.request_id = "drawn"  # the forwarder gave it one
    assert site.far.asked[0][0] == request


async def test_a_large_start_without_an_owner_is_refused_with_a_hint(site: Site) -> None:
    site.directory.address = "nowhere"
    request = pb.StartPlanningCeremonyRequest(ceremony_id="c1", story_id="s1", inputs={"a": "x" * LARGE_START_BYTES})
    with refused("UNAVAILABLE", "unavailable"):
        await site.stub.StartPlanningCeremony(request)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
def test_every_method_names_an_instance_or_is_listed_as_answered_anywhere(method: Any) -> None:
    """A new method must be one of the two; without forwarding it would be answered from a part of the rows."""
    # specification 14.15
    about_one = "instance_id" in method.input_type.fields_by_name or method.name == "StartPlanningCeremony"
    assert about_one != (method.name in ANY_WORKER)


def test_a_start_names_the_instance_that_it_makes() -> None:
    request = pb.StartPlanningCeremonyRequest(ceremony_id="c1", story_id="s1")
    assert instance_of("StartPlanningCeremony", request) == "c1:s1"


async def test_a_forwarded_call_keeps_metadata_deadline_and_the_whole_answer(site: Site) -> None:
    call = site.stub.GetPlanningCeremonyInstance(GET, timeout=5, metadata=(("x-correlation-id", "k"),))
    assert (await call).message == "c:s"
    assert ("x-head", "2") in tuple(await call.initial_metadata())
    assert ("x-tail", "1") in tuple(await call.trailing_metadata())
    ((request, metadata, left),) = site.far.asked
    assert request == GET
    assert metadata["x-correlation-id"] == "k"
    assert re.match(r"ipv[46]:", metadata[FORWARDED])
    assert left is not None and 2 < left < 2.9
    assert site.near.asked == []


async def test_a_local_or_forwarded_call_is_answered_here(site: Site) -> None:
    await site.stub.GetPlanningCeremonyInstance(GET, metadata=((FORWARDED, "1"),))
    site.directory.address = HERE
    await site.stub.GetPlanningCeremonyInstance(GET)
    assert (len(site.near.asked), len(site.far.asked)) == (2, 0)


async def test_an_instance_without_an_owner_is_unavailable_with_a_retry_hint(site: Site) -> None:
    # specification 14.3, 14.15
    site.directory.address = "nowhere"
    with refused("UNAVAILABLE", "unavailable") as seen:
        await site.stub.GetPlanningCeremonyInstance(GET)
    assert seen.trailing["retry-after-ms"] == "1500"


async def test_the_owners_refusal_reaches_the_client_unchanged(site: Site) -> None:
    # specification 14.24
    refusal = CallRefused(grpc.StatusCode.FAILED_PRECONDITION, "gate_closed", "not open any more")
    text, trailing = details_and_trailers(refusal, GET)

    async def refuse(_: Any, context: Any) -> Any:
        await context.abort(refusal.status, text, (*trailing, ("x-why", "z")))

    site.far.answer = refuse
    with refused("FAILED_PRECONDITION", "gate_closed") as seen:
        await site.stub.GetPlanningCeremonyInstance(GET)
    assert seen.trailing["x-why"] == "z"
    assert seen.rich.named == {"instance_id": GET.instance_id}


async def test_an_unreachable_owner_is_unavailable_and_the_message_names_the_request(site: Site) -> None:
    """The forwarder made this id; with it the client can repeat the operation safely."""
    # specification 14.4, 14.15
    site.directory.address = f"127.0.0.1:{free_port()}"
    with refused("UNAVAILABLE", "unavailable") as seen:
        await site.stub.DecideGate(pb.DecideGateRequest(instance_id="c:s", step_id="ask", actor="a"))
    assert "request_id 'drawn'" in seen.details and int(seen.trailing["retry-after-ms"]) > 0
    assert seen.rich.named == {"instance_id": "c:s", "request_id": "drawn"}


async def test_a_cancelled_call_ends_at_the_owner(site: Site) -> None:
    ended = asyncio.Event()

    async def hang(*_: Any) -> Any:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    site.far.answer = hang
    call = site.stub.GetPlanningCeremonyInstance(GET)
    while not site.far.asked:
        await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_stream_is_forwarded_to_its_end(site: Site) -> None:
    call = site.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id="c:s"))
    assert [one.ceremony.version async for one in call] == [0, 1, 2]
    assert ("x-tail", "1") in tuple(await call.trailing_metadata())
    with refused("UNAVAILABLE", "unavailable", bare=True) as seen:  # an owner of an older release sends no details
        async for _ in site.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id="gone")):
            pass
    assert seen.trailing["retry-after-ms"] == "1000"


async def test_each_worker_has_one_channel_which_closes_when_the_worker_is_lost(site: Site) -> None:
    await site.stub.GetPlanningCeremonyInstance(GET)
    first = dict(site.peers._channels)
    await site.stub.GetPlanningCeremonyInstance(GET)
    assert site.peers._channels == first and len(first) == 1
    site.directory.address = "nowhere"
    await site.peers.prune()
    assert site.peers._channels == {}


async def hang(*_: Any) -> Any:
    await asyncio.sleep(30)


async def test_a_frozen_owner_is_unavailable_within_three_seconds(site: Site) -> None:
    """The client's own deadline is 15 s. It gets the id with which it may ask again, and the time for that."""
    # specification 14.15
    site.far.answer = hang
    began = time.monotonic()
    with refused("UNAVAILABLE", "unavailable") as seen:
        await site.stub.DecideGate(pb.DecideGateRequest(instance_id="c:s", step_id="ask", actor="a"), timeout=15)
    assert time.monotonic() - began < 3.0
    assert "request_id 'drawn'" in seen.details and int(seen.trailing["retry-after-ms"]) > 0


@pytest.mark.parametrize("here", [True, False])
async def test_a_call_to_a_frozen_owner_goes_on_to_the_new_one(site: Site, here: bool) -> None:  # noqa: FBT001
    # specification 14.15
    site.far.answer = hang
    new = grpc.aio.server()
    add_PlanningCeremonyProcessorServicer_to_server(another := Servicer(), new)  # type: ignore[abstract]
    address = f"127.0.0.1:{new.add_insecure_port('127.0.0.1:0')}"
    await new.start()
    try:
        call = asyncio.ensure_future(
            site.stub.DecideGate(pb.DecideGateRequest(instance_id="c:s", step_id="ask", actor="a"), timeout=15)
        )
        while not site.far.asked:
            await asyncio.sleep(0.01)
        site.directory.address = HERE if here else address
        async with asyncio.timeout(2):
            await call
    finally:
        await new.stop(0)
    ((request, _, _),) = (site.near if here else another).asked
    assert request.request_id == site.far.asked[0][0].request_id == "drawn"


async def test_a_history_may_take_longer_than_other_answers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "ANSWER_SECONDS", 0.2)

    async def later(*_: Any) -> Any:
        await asyncio.sleep(0.5)
        return pb.GetHistoryResponse()

    site.far.answer = later
    await site.stub.GetHistory(pb.GetHistoryRequest(instance_id="c:s"))
    with refused("UNAVAILABLE", "unavailable"):
        await site.stub.GetPlanningCeremonyInstance(GET)


async def test_a_stream_of_a_frozen_owner_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.15
    monkeypatch.setattr(forwarding, "LOOK_AT_STREAM_SECONDS", 0.05)
    began = time.monotonic()
    with refused("UNAVAILABLE", "unavailable"):
        async for _ in site.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id="silent")):
            pass
    assert time.monotonic() - began < 3.0
    call = site.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id="hanging"))
    assert (await call.read()).ceremony.version == 0
    site.directory.address = HERE
    with refused("UNAVAILABLE", "unavailable"):
        await call.read()
        await call.read()
        await call.read()
