"""The thin client against a real gRPC server: what it sends, what it repeats, what it raises."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.client import PlanningCeremonyClient, PlanningCeremonyError
from google.protobuf.json_format import MessageToDict

pytestmark = pytest.mark.timeout(30)
SERVICE = pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"]


class Engine(grpc.GenericRpcHandler):
    """Keeps every request, is UNAVAILABLE `moving` times, has no room `full` times (`hint`: ms), then answers.

    It gives the answer or the error it was made with.
    """

    def __init__(
        self,
        answer: Any = None,
        error: grpc.StatusCode | None = None,
        moving: int = 0,
        full: int = 0,
        hint: str = "60",
    ) -> None:
        self.full = full
        self.hint = hint
        self.answers = answer if isinstance(answer, list) else [answer]
        self.error = error
        self.moving = moving
        self.requests: list[Any] = []

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        method = SERVICE.methods_by_name[call.method.rpartition("/")[2]]
        parse = getattr(pb, method.input_type.name).FromString
        write = getattr(pb, method.output_type.name).SerializeToString
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream, parse, write)
        return grpc.unary_unary_rpc_method_handler(self._one, parse, write)

    async def _one(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.moving:
            self.moving -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "partition_moving: partition 3 has a new owner soon")
        if self.full:
            self.full -= 1
            trailing = (("retry-after-ms", self.hint),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded: no room", trailing)
        if self.error:
            await context.abort(self.error, "not_here: nothing of the kind")
        return self.answers[0]

    async def _stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for answer in self.answers:
            yield answer
        if self.error:
            await context.abort(self.error, "not_here: nothing of the kind")


@asynccontextmanager
async def client_of(engine: Engine) -> AsyncIterator[PlanningCeremonyClient]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((engine,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with PlanningCeremonyClient(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        await server.stop(None)


async def test_a_start_is_repeated_with_the_same_request_id_while_the_engine_is_unavailable() -> None:
    """Twice UNAVAILABLE, then accepted: three times the very same request."""
    # specification 14.19
    engine = Engine(pb.StartPlanningCeremonyResponse(instance_id="c1:s1", status="accepted"), moving=2)
    async with client_of(engine) as client:
        inputs = {"text": "plain", "points": 5, "tags": ["a", {"b": None}]}
        instance_id = await client.start(
            "review", ceremony_id="c1", story_id="s1", requested_by="po", inputs=inputs, step_ids=["one"]
        )
    assert instance_id == "c1:s1"
    first, second, third = engine.requests
    assert first == second == third
    assert first.request_id
    assert dict(first.inputs) == {"text": "plain"}
    assert json.loads(json.dumps(MessageToDict(first.inputs_json))) == {"points": 5, "tags": ["a", {"b": None}]}


async def test_a_start_is_repeated_when_the_engine_says_while_it_has_no_room() -> None:
    """Twice RESOURCE_EXHAUSTED with a hint, then accepted: the same request each time, no sooner than half the hint."""
    # specification 14.19
    engine = Engine(pb.StartPlanningCeremonyResponse(instance_id="c1:s1"), full=2)
    async with client_of(engine) as client:
        began = time.monotonic()
        assert await client.start("review", ceremony_id="c1", story_id="s1", requested_by="po") == "c1:s1"
    assert time.monotonic() - began >= 0.06
    first, second, third = engine.requests
    assert first == second == third


async def test_a_start_whose_time_is_up_before_there_is_room_raises_with_the_hint() -> None:
    """An hour is more than the client's timeout: it does not wait for it in vain."""
    # specification 14.19
    async with client_of(Engine(full=9, hint="3600000")) as client:
        with pytest.raises(PlanningCeremonyError, match="overloaded") as raised:
            await client.start("review", ceremony_id="c1", story_id="s1", requested_by="po")
    assert raised.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.retry_after == 3600


async def test_another_call_has_another_request_id() -> None:
    """Two decisions in a row are two decisions."""
    engine = Engine(pb.DecideGateResponse(ceremony=pb.PlanningCeremonyInstance(instance_id="c1:s1")))
    async with client_of(engine) as client:
        for _ in range(2):
            ceremony = await client.decide("c1:s1", step_id="gate", approved=True, actor="ana", role="PO", visit=1)
            assert ceremony.instance_id == "c1:s1"
    first, second = engine.requests
    assert first.request_id != second.request_id
    assert (first.step_id, first.WhichOneof("gate"), first.visit, first.approved) == ("gate", "step_id", 1, True)


async def test_a_decision_names_exactly_one_gate() -> None:
    """A oneof would silently keep the last."""
    engine = Engine()
    wrong: list[dict[str, Any]] = [{}, {"step_id": "a", "guard": "b"}]
    async with client_of(engine) as client:
        for names in wrong:
            with pytest.raises(ValueError, match="exactly one"):
                await client.decide("c1:s1", approved=True, actor="ana", role="PO", **names)
    assert engine.requests == []


async def test_a_refusal_is_raised_at_once_with_its_code() -> None:
    """Only UNAVAILABLE is repeated."""
    engine = Engine(error=grpc.StatusCode.FAILED_PRECONDITION)
    async with client_of(engine) as client:
        with pytest.raises(PlanningCeremonyError, match="not_here") as raised:
            await client.trigger("c1:s1", "go", actor="ana", role="PO")
    assert raised.value.status is grpc.StatusCode.FAILED_PRECONDITION
    assert len(engine.requests) == 1


async def test_an_unknown_instance_is_none() -> None:
    """Get is OK with success=false then."""
    async with client_of(Engine(pb.GetPlanningCeremonyInstanceResponse(success=False))) as client:
        assert await client.get("c1:s1") is None


async def test_watching_yields_each_form_and_raises_what_ends_it_early() -> None:
    """Two versions come, then the error."""
    forms = [pb.WatchPlanningCeremonyResponse(ceremony=pb.PlanningCeremonyInstance(version=n)) for n in (1, 2)]
    seen: list[int] = []
    async with client_of(Engine(forms, error=grpc.StatusCode.NOT_FOUND)) as client:

        async def watch() -> None:
            async for ceremony in client.watch("c1:s1"):
                seen.append(ceremony.version)  # noqa: PERF401 - a comprehension would lose what came before the error

        with pytest.raises(PlanningCeremonyError) as raised:
            await watch()
    assert seen == [1, 2]
    assert raised.value.status is grpc.StatusCode.NOT_FOUND
