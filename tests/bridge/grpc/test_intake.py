"""Calls are taken up fast by a loop with long turns, and gRPC's private names are as expected."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from importlib.metadata import version
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
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from bridge.clock import HostClock
from bridge.grpc import intake
from bridge.grpc.intake import CallLimit, Intake, read_all_wakeups
from bridge.grpc.refusals import CallRefused

START = "/fleet.planning_ceremony.v1.PlanningCeremonyProcessor/StartPlanningCeremony"
CALLS = 300
TURN_SECONDS = 0.001


class Answering(PlanningCeremonyProcessorServicer):
    async def StartPlanningCeremony(self, request: Any, context: Any) -> pb.StartPlanningCeremonyResponse:  # noqa: N802
        if request.story_id:
            await asyncio.Event().wait()
        return pb.StartPlanningCeremonyResponse(instance_id=request.ceremony_id)


class Turns:
    """A busy loop: each of its turns takes a millisecond."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            time.sleep(TURN_SECONDS)  # noqa: ASYNC251 - makes a long turn
            self.count += 1
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(*gates: CallLimit) -> AsyncIterator[tuple[Any, Intake, grpc.aio.Server]]:
    read_all_wakeups()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    intake = Intake(server, (), HostClock(), gates)
    add_PlanningCeremonyProcessorServicer_to_server(Answering(), intake)  # type: ignore[arg-type, abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    intake.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield PlanningCeremonyProcessorStub(channel), intake, server
    finally:
        await server.stop(0)


async def test_simultaneous_calls_are_answered_within_few_turns_of_a_slow_loop() -> None:
    """grpc.aio itself needs several turns for each call: it handles one event, and one call of a method, at a time."""
    async with serving() as (stub, _, _):
        await stub.StartPlanningCeremony(pb.StartPlanningCeremonyRequest(), wait_for_ready=True)
        turns = Turns()
        busy = asyncio.create_task(turns.run())
        calls = [stub.StartPlanningCeremony(pb.StartPlanningCeremonyRequest(ceremony_id=str(n))) for n in range(CALLS)]
        answers = await asyncio.gather(*calls)
        busy.cancel()
    assert [answer.instance_id for answer in answers] == [str(n) for n in range(CALLS)]
    assert turns.count < CALLS, "not even one call a turn"


async def test_simultaneous_calls_start_over_several_turns() -> None:
    """One turn with all of them would take seconds, and delay every other call."""
    pace = intake._Pace()
    turns = Turns()
    began: list[int] = []

    async def enter() -> None:
        await pace.wait_for_turn()
        began.append(turns.count)

    busy = asyncio.create_task(turns.run())
    await asyncio.gather(*(enter() for _ in range(5 * intake.STARTED_PER_TURN)))
    busy.cancel()
    assert max(Counter(began).values()) <= 2 * intake.STARTED_PER_TURN
    assert len(set(began)) >= 3


async def test_calls_above_the_limit_are_refused_with_a_hint_and_accepted_ones_stay() -> None:
    """As many simultaneous calls are accepted as there is room for; each of the others gets a retry hint."""
    full = CallRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", "three are inside", 1.5)
    gate = CallLimit(START, per_turn=50, refuse=lambda unanswered: full if unanswered >= 3 else None)
    waiting = pb.StartPlanningCeremonyRequest(story_id="waits")
    async with serving(gate) as (stub, _, _):
        calls = [stub.StartPlanningCeremony(waiting, wait_for_ready=True) for _ in range(40)]
        codes = {asyncio.ensure_future(call.code()): call for call in calls}
        refused: set[Any] = set()
        while len(refused) < 36:  # of 40: three are accepted, and grpc.aio may take up one itself
            done, _ = await asyncio.wait(codes.keys() - refused, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        assert {await code for code in refused} == {full.status}
        one = codes[refused.pop()]
        assert await one.details() == "overloaded: three are inside"
        assert dict(await one.trailing_metadata())["retry-after-ms"] == "1500"
        for call in calls:
            call.cancel()


async def test_calls_that_wait_for_their_turn_do_not_delay_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten are accepted, though their turn never comes; the others are refused, except those that grpc.aio takes up."""
    monkeypatch.setattr(intake._Pace, "wait_for_turn", lambda _: asyncio.Event().wait())
    full = CallRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", "ten are inside", 1.5)
    gate = CallLimit(START, per_turn=20, refuse=lambda unanswered: full if unanswered >= 10 else None)
    async with serving(gate) as (stub, _, _):
        calls = [stub.StartPlanningCeremony(pb.StartPlanningCeremonyRequest(), wait_for_ready=True) for _ in range(40)]
        codes = [asyncio.ensure_future(call.code()) for call in calls]
        async with asyncio.timeout(30):
            while sum(code.done() and code.result() is full.status for code in codes) < 10:
                await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()


async def test_the_intake_ends_with_its_server() -> None:
    async with serving() as (stub, intake, server):
        await stub.StartPlanningCeremony(pb.StartPlanningCeremonyRequest(), wait_for_ready=True)
        assert any(not task.done() for task in intake._tasks)
        await server.stop(None)
        await asyncio.sleep(0.05)
        assert all(task.done() for task in intake._tasks)


def test_grpc_has_the_minor_version_whose_private_names_are_known() -> None:
    assert version("grpcio").startswith("1.85.")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (cygrpc.AioServer, "_request_registered_call"),
        (cygrpc.AioServer, "is_running"),
        (cygrpc.PollerCompletionQueue, "bind_loop"),
    ],
)
def test_called_private_names_exist(owner: Any, name: str) -> None:
    assert callable(getattr(owner, name))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "_handle_rpc",
            ("method_name", "method_resolver", "interceptors", "rpc_state", "loop", "concurrency_exceeded"),
        ),
        ("_schedule_rpc_coro", ("rpc_coro", "rpc_state", "loop", "method_name")),
    ],
)
def test_called_private_functions_take_the_given_arguments(name: str, arguments: tuple[str, ...]) -> None:
    code = getattr(cygrpc, name).__code__
    assert code.co_varnames[: code.co_argcount] == arguments
    assert issubclass(cygrpc._RequestCallError, Exception)
