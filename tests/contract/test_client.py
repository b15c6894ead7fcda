"""The thin client against a real gRPC server: requests, repetitions and errors."""

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
    """Records every request; is UNAVAILABLE `moving` times and overloaded `full` times (`hint`: ms), then answers.

    The last result is the given answer or error.
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
    """After UNAVAILABLE twice it is accepted: three times the same request."""
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


async def test_a_large_whole_number_is_never_rounded() -> None:
    """Inside a list it travels as JSON text; alone it is refused before anything is sent."""
    # specification 10.15
    engine = Engine(pb.StartPlanningCeremonyResponse(instance_id="c1:s1"))
    who = {"ceremony_id": "c1", "story_id": "s1", "requested_by": "po"}
    async with client_of(engine) as client:
        await client.start("review", **who, inputs={"ids": [{"n": 2**53 + 1}], "small": [2**53]})
        with pytest.raises(PlanningCeremonyError, match="inputs_invalid"):
            await client.start("review", **who, inputs={"id": 2**64})
    (request,) = engine.requests
    assert dict(request.inputs) == {"ids": json.dumps([{"n": 2**53 + 1}])}
    assert list(request.inputs_json) == ["small"]


async def test_a_start_is_repeated_after_the_hint_while_the_engine_is_overloaded() -> None:
    """After RESOURCE_EXHAUSTED twice it is accepted: the same request each time, not before half of the hint."""
    # specification 14.19
    engine = Engine(pb.StartPlanningCeremonyResponse(instance_id="c1:s1"), full=2)
    async with client_of(engine) as client:
        began = time.monotonic()
        assert await client.start("review", ceremony_id="c1", story_id="s1", requested_by="po") == "c1:s1"
    assert time.monotonic() - began >= 0.06
    first, second, third = engine.requests
    assert first == second == third


async def test_a_start_with_a_hint_beyond_its_timeout_raises_at_once() -> None:
    """A hint of an hour is more than the client's timeout, so the client does not wait."""
    # specification 14.19
    async with client_of(Engine(full=9, hint="3600000")) as client:
        with pytest.raises(PlanningCeremonyError, match="overloaded") as raised:
            await client.start("review", ceremony_id="c1", story_id="s1", requested_by="po")
    assert raised.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.retry_after == 3600


async def test_each_call_has_its_own_request_id() -> None:
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
    """A oneof would silently keep the last one."""
    engine = Engine()
    wrong: list[dict[str, Any]] = [{}, {"step_id": "a", "guard": "b"}]
    async with client_of(engine) as client:
        for names in wrong:
            with pytest.raises(ValueError, match="exactly one"):
                await client.decide("c1:s1", approved=True, actor="ana", role="PO", **names)
    assert engine.requests == []


async def test_a_refusal_is_raised_at_once_with_its_code() -> None:
    """Only UNAVAILABLE and an overload are repeated."""
    engine = Engine(error=grpc.StatusCode.FAILED_PRECONDITION)
    async with client_of(engine) as client:
        with pytest.raises(PlanningCeremonyError, match="not_here") as raised:
            await client.trigger("c1:s1", "go", actor="ana", role="PO")
    assert raised.value.status is grpc.StatusCode.FAILED_PRECONDITION
    assert len(engine.requests) == 1


async def test_get_of_an_unknown_instance_returns_none() -> None:
    """The answer is OK with success=false."""
    async with client_of(Engine(pb.GetPlanningCeremonyInstanceResponse(success=False))) as client:
        assert await client.get("c1:s1") is None


async def test_watch_yields_each_version_and_raises_the_error_that_ends_it() -> None:
    """Two versions arrive, then the error."""
    forms = [pb.WatchPlanningCeremonyResponse(ceremony=pb.PlanningCeremonyInstance(version=n)) for n in (1, 2)]
    seen: list[int] = []
    async with client_of(Engine(forms, error=grpc.StatusCode.NOT_FOUND)) as client:

        async def watch() -> None:
            async for ceremony in client.watch("c1:s1"):
                seen.append(ceremony.version)  # noqa: PERF401 - a comprehension would lose the versions before the error

        with pytest.raises(PlanningCeremonyError) as raised:
            await watch()
    assert seen == [1, 2]
    assert raised.value.status is grpc.StatusCode.NOT_FOUND
