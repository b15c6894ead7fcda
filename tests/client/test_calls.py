"""Both clients against a real gRPC server: one list of behaviours for the two."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
from fleet.planning_ceremony.client import (
    AsyncPlanningCeremonyClient,
    PlanningCeremonyClient,
    PlanningCeremonyError,
    backoff,
)
from fleet.planning_ceremony.v1 import client as former
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.refusals import CallRefused
from bridge.grpc.violation import Violation
from streams.api import Overloaded, Unavailable
from tests.client.world import Engine, Plain, serving, start_fields
from tests.services import free_port

INVALID = grpc.StatusCode.INVALID_ARGUMENT

Called = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["sync", "async"])
def called(request: pytest.FixtureRequest) -> Called:
    """Call one method of a new client: its arguments are the address, the method, and those of the method."""

    async def sync(address: str, method: str, *args: Any, **kwargs: Any) -> Any:
        with PlanningCeremonyClient(address, timeout=kwargs.pop("client_timeout", 30.0)) as client:
            found = getattr(client, method)(*args, **kwargs)
            return list(found) if isinstance(found, Iterator) else found

    async def aio(address: str, method: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncPlanningCeremonyClient(address, timeout=kwargs.pop("client_timeout", 30.0)) as client:
            found = getattr(client, method)(*args, **kwargs)
            return [one async for one in found] if inspect.isasyncgen(found) else await found

    return sync if request.param == "sync" else aio


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    # specification 14.19
    def public(kind: type) -> dict[str, str]:
        members = {name: one for name, one in vars(kind).items() if not name.startswith("_")}
        return {
            name: str(inspect.signature(one).replace(return_annotation="")) if callable(one) else ""
            for name, one in members.items()
        } | {"init": str(inspect.signature(kind))}

    assert public(PlanningCeremonyClient) == public(AsyncPlanningCeremonyClient)


def test_every_call_of_the_service_is_in_the_client() -> None:
    """The stubs that the client's code names are all methods of the service."""
    source = inspect.getsource(PlanningCeremonyClient)
    methods = pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"].methods_by_name
    assert [name for name in methods if f"self._stub.{name}" not in source] == []


@pytest.mark.usefixtures("quick_pauses")
async def test_a_call_is_repeated_beyond_five_attempts(called: Called) -> None:
    """The retries of gRPC itself end after five attempts, some four seconds, whatever the caller's timeout is."""
    # specification 14.19
    engine = Engine(first=[Unavailable("moving", 0.02) for _ in range(12)])
    with serving(engine) as address:
        assert await called(address, "start", **start_fields()) == "c1:s1"
    assert len(engine.requests) == 13
    assert len({request.request_id for request in engine.requests}) == 1
    assert engine.requests[0].request_id


async def test_a_call_waits_for_an_engine_that_starts_late(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at first; the server starts after the eighth attempt."""
    # specification 14.19
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.1)
    port, refusals, running = free_port(), [], []
    before = backoff.pause_before_next

    def counting(refused: PlanningCeremonyError, attempts: int, left: float) -> float | None:
        refusals.append(refused)
        if len(refusals) == 8:
            running.append(serving(Engine(), port))
            running[0].__enter__()
        return before(refused, attempts, left)

    monkeypatch.setattr(backoff, "pause_before_next", counting)
    try:
        assert await called(f"127.0.0.1:{port}", "start", **start_fields()) == "c1:s1"
    finally:
        running[0].__exit__(None, None, None)
    assert len(refusals) >= 8
    assert all(one.code == "unavailable" and not one.from_engine for one in refusals)


@pytest.mark.usefixtures("quick_pauses")
async def test_a_call_fails_with_the_reason_once_its_time_is_over(called: Called) -> None:
    """The timeout of the call goes before that of the client."""
    # specification 14.19
    engine = Engine(answers=lambda _: Plain(grpc.StatusCode.UNAVAILABLE, "unavailable: moving"))
    with serving(engine) as address, pytest.raises(PlanningCeremonyError) as raised:
        await called(address, "get", "c1:s1", timeout=0.5, client_timeout=10_000)
    assert (raised.value.status, raised.value.code) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
    assert len(engine.requests) > 5


async def test_details_of_a_refusal_are_typed(called: Called) -> None:
    # specification 14.24, 14.25
    violations = [Violation("inputs.title", "input_missing", "review requires it"), Violation("step_ids", "x", "y")]
    refusal = CallRefused(INVALID, "input_missing", "review requires title", violations=violations)
    engine = Engine(first=[refusal])
    with serving(engine) as address, pytest.raises(PlanningCeremonyError) as raised:
        await called(address, "start", **start_fields())
    error = raised.value
    assert (error.status, error.code) == (INVALID, "input_missing")
    assert error.message == "input_missing: review requires title"
    assert str(error) == f"INVALID_ARGUMENT: {error.message}"
    assert [(one.field, one.code, one.description) for one in error.details.violations] == [
        tuple(v) for v in violations
    ]
    assert (error.details.instance_id, error.details.request_id) == ("c1:s1", engine.requests[0].request_id)
    assert (error.details.retry_delay, error.details.more_violations) == (None, 0)


async def test_violations_that_had_no_room_are_counted(called: Called) -> None:
    # specification 14.26
    violations = [Violation(f"f{n}", "rule", "x" * 400) for n in range(100)]
    engine = Engine(first=[CallRefused(INVALID, "rule", "many", violations=violations)])
    with serving(engine) as address, pytest.raises(PlanningCeremonyError) as raised:
        await called(address, "start", **start_fields())
    details = raised.value.details
    assert details.more_violations > 0
    assert len(details.violations) + details.more_violations == 100
    assert "more_violations" not in details.metadata


@pytest.mark.parametrize(
    ("plain", "code"),
    [
        (Plain(grpc.StatusCode.NOT_FOUND, "unknown_instance: no"), "unknown_instance"),
        (Plain(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"), "unimplemented"),
        (Plain(grpc.StatusCode.PERMISSION_DENIED, ""), "permission_denied"),
    ],
)
async def test_an_error_without_details_has_a_code_all_the_same(called: Called, plain: Plain, code: str) -> None:
    """An engine of release 0.1.0 sends none, and neither does gRPC itself."""
    with serving(Engine(first=[plain])) as address, pytest.raises(PlanningCeremonyError) as raised:
        await called(address, "get", "c1:s1")
    assert (raised.value.code, raised.value.message) == (code, plain.text)
    assert raised.value.details.violations == ()


@pytest.mark.usefixtures("quick_pauses")
async def test_a_connection_that_breaks_is_repeated_and_an_error_of_the_engine_is_not(called: Called) -> None:
    """The request id makes the first one safe."""
    broken = [Plain(grpc.StatusCode.UNKNOWN, "Stream removed"), Plain(grpc.StatusCode.INTERNAL, "RST_STREAM")]
    engine = Engine(first=[*broken, CallRefused(grpc.StatusCode.INTERNAL, "internal", "ours"), None])
    with serving(engine) as address, pytest.raises(PlanningCeremonyError, match="internal: ours"):
        await called(address, "start", **start_fields())
    assert len(engine.requests) == 3


async def test_an_overloaded_engine_is_asked_again_by_its_hint_only(called: Called) -> None:
    # specification 14.19
    engine = Engine(first=[Overloaded("no room", 0.05), Overloaded("no room", 0.05), Overloaded("no room", 3600)])
    with serving(engine) as address, pytest.raises(PlanningCeremonyError) as raised:
        await called(address, "start", **start_fields())
    assert raised.value.retry_after == 3600
    assert len(engine.requests) == 3
    too_large = Engine(first=[Plain(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")])
    with serving(too_large) as address, pytest.raises(PlanningCeremonyError, match="too large"):
        await called(address, "start", **start_fields())


async def test_a_call_of_a_closed_client_is_refused() -> None:
    with PlanningCeremonyClient("127.0.0.1:1") as client:
        pass
    async with AsyncPlanningCeremonyClient("127.0.0.1:1") as other:
        pass
    with pytest.raises(PlanningCeremonyError) as raised:
        client.get("c1:s1")
    with pytest.raises(PlanningCeremonyError) as also:
        await other.get("c1:s1")
    assert raised.value.code == also.value.code == "client_closed"
    assert not raised.value.transient


async def test_a_call_may_have_all_the_time_there_is(called: Called) -> None:
    engine = Engine(first=[Unavailable("moving", 0.01)])
    with serving(engine) as address:
        assert await called(address, "start", **start_fields(), timeout=math.inf) == "c1:s1"


async def test_a_large_whole_number_is_never_rounded(called: Called) -> None:
    """Inside a list it travels as JSON text; alone it is refused before anything is sent."""
    # specification 10.15
    engine = Engine()
    with serving(engine) as address:
        await called(address, "start", **start_fields(inputs={"ids": [{"n": 2**53 + 1}], "small": [2**53], "t": "x"}))
        with pytest.raises(PlanningCeremonyError, match="inputs_invalid") as raised:
            await called(address, "start", **start_fields(inputs={"id": 2**64}))
    assert raised.value.code == "inputs_invalid"
    (request,) = engine.requests
    assert dict(request.inputs) == {"ids": json.dumps([{"n": 2**53 + 1}]), "t": "x"}
    assert list(request.inputs_json) == ["small"]


async def test_a_decision_names_exactly_one_gate(called: Called) -> None:
    """A oneof would silently keep the last one."""
    engine = Engine()
    wrong: list[dict[str, Any]] = [{}, {"step_id": "a", "guard": "b"}]
    with serving(engine) as address:
        for names in wrong:
            with pytest.raises(ValueError, match="exactly one"):
                await called(address, "decide", "c1:s1", approved=True, actor="ana", role="PO", **names)
    assert engine.requests == []


async def test_get_of_an_unknown_instance_returns_none(called: Called) -> None:
    """The answer is OK with success=false."""
    with serving(Engine(first=[pb.GetPlanningCeremonyInstanceResponse(success=False)])) as address:
        assert await called(address, "get", "c1:s1") is None


def test_the_names_of_release_0_1_0_are_those_of_the_async_client() -> None:
    # specification 14.19
    assert former.PlanningCeremonyClient is AsyncPlanningCeremonyClient
    assert former.PlanningCeremonyError is PlanningCeremonyError


async def test_each_method_sends_its_request(called: Called) -> None:
    """Every operation has a request id of its own."""
    engine = Engine(answers=_empty_answer)
    who = {"actor": "ana", "role": "PO", "reason": "r"}
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = [
        ("cancel", ("c1:s1",), who, who | {"instance_id": "c1:s1"}),
        ("pause", ("c1:s1",), who, who | {"instance_id": "c1:s1"}),
        ("resume", ("c1:s1",), who, who | {"instance_id": "c1:s1"}),
        ("retry_step", ("c1:s1", "a"), who, who | {"step_id": "a"}),
        ("run_step", ("c1:s1", "a"), who, who | {"step_id": "a"}),
        ("trigger", ("c1:s1", "go"), who, who | {"trigger": "go"}),
        (
            "decide",
            ("c1:s1",),
            {"approved": True, "actor": "ana", "role": "PO", "guard": "g", "visit": 2, "comment": "c"},
            {"approved": True, "guard": "g", "visit": 2, "comment": "c", "step_id": ""},
        ),
        (
            "replay_dead_letter",
            ("t", 1, 2),
            {"actor": "ana", "reason": "r"},
            {"origin": "t", "partition": 1, "offset": 2},
        ),
        ("dead_letter", ("t", 1, 2), {}, {"origin": "t", "partition": 1, "offset": 2}),
        ("dead_letters", (), {"topic": "t", "limit": 5}, {"topic_filter": "t", "limit": 5}),
        ("diagnose", ("c1:s1",), {}, {"instance_id": "c1:s1"}),
        ("definitions", (), {}, {}),
        ("history", ("c1:s1",), {"limit": 3}, {"instance_id": "c1:s1", "limit": 3, "whole": False}),
        ("list", (), {"state": "OPEN", "page_token": "p"}, {"state_filter": "OPEN", "page_token": "p", "limit": 100}),
    ]
    with serving(engine) as address:
        for method, args, kwargs, wanted in calls:
            await called(address, method, *args, **kwargs)
            request = engine.requests[-1]
            assert {name: getattr(request, name) for name in wanted} == wanted, method
    with_ids = [one.request_id for one in engine.requests if "request_id" in one.DESCRIPTOR.fields_by_name]
    assert len(with_ids) == len(set(with_ids)) == 8
    assert all(with_ids)


def _empty_answer(request: Any) -> Any:
    return getattr(pb, type(request).__name__.removesuffix("Request") + "Response")()


async def test_a_stream_gives_each_form_and_then_its_error(called: Called) -> None:
    forms = [pb.WatchPlanningCeremonyResponse(ceremony=pb.PlanningCeremonyInstance(version=n)) for n in (1, 2)]
    with serving(Engine(first=[forms])) as address:
        assert [one.version for one in await called(address, "watch", "c1:s1")] == [1, 2]
    refusal = CallRefused(grpc.StatusCode.NOT_FOUND, "unknown_instance", "no")
    with serving(Engine(first=[[*forms, refusal]])) as address, pytest.raises(PlanningCeremonyError) as raised:
        await called(address, "watch", "c1:s1")
    assert (raised.value.code, raised.value.details.instance_id) == ("unknown_instance", "c1:s1")


async def test_all_pages_of_a_history_follow_each_other(called: Called) -> None:
    pages = [pb.GetHistoryResponse(next_page_token="a"), pb.GetHistoryResponse(next_page_token="b")]
    engine = Engine(first=[*pages, pb.GetHistoryResponse(complete=True)])
    with serving(engine) as address:
        found = await called(address, "history_pages", "c1:s1")
    assert [page.complete for page in found] == [False, False, True]
    assert [request.page_token for request in engine.requests] == ["", "a", "b"]
