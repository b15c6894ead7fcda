"""The load, a process of its own: starts ceremonies at a bounded rate, decides, triggers, and waits for each end.

Every start that was answered `accepted` is on disk, as a line of JSON, before anything else is done about it. A start
or a decision without an answer is repeated with the same ids, at the next worker if there are several. When stdin
closes, no more ceremonies are started; once all have ended the process prints one line of JSON with its summary.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

CHANNEL = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
CALL_SECONDS = 5.0
AGAIN_SECONDS = 0.2
# Pause before the first look at a ceremony; later looks follow after growing pauses.
LOOK_SECONDS = 0.5
OVERLOADED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNANSWERED = (OVERLOADED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
# Starts that may wait for an answer: during an outage the load pauses and does not pile up.
IN_FLIGHT = 64
MIX: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("backlog_review", 3, {"title": "Pay by card"}),
    ("planning", 2, {"title": "Pay by card", "score": {"value": 0.9}, "urgent": "yes"}),
    ("planning", 1, {"title": "Pay in cash", "score": {"value": 0.2}}),
    ("refinement", 2, {"draft": {"text": "A"}, "defaults": {"size": 3}, "labels": ["x"], "more_labels": ["x", "y"]}),
    ("approval", 2, {}),
    ("merge_chain", 2, {"payload": {"a": 1, "b": [True, None]}}),
)
# Share of the approvals that a trigger ends, bypassing the open gate.
TRIGGERED = 0.3
# Share of the gates that are rejected.
REJECTED = 0.1


class Fleet:
    """The workers' fronts; a call goes to the one that answered last, or to the next if that does not answer."""

    def __init__(self, addresses: list[str]) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=CHANNEL) for address in addresses]
        self._stubs: list[Any] = [PlanningCeremonyProcessorStub(channel) for channel in self._channels]
        self._turn = 0
        self.repeated = 0

    async def call(self, method: str, request: Any) -> Any:
        """Repeat a call until it is answered. Raises AioRpcError for a refusal."""
        turn = self._turn
        while True:
            try:
                answer = await getattr(self._stubs[turn], method)(request, timeout=CALL_SECONDS)
                self._turn = turn
                return answer
            except grpc.aio.AioRpcError as error:
                if error.code() not in UNANSWERED:
                    raise
                refused = error
            self.repeated += 1
            if refused.code() is not OVERLOADED:
                turn = (turn + 1) % len(self._stubs)
            await asyncio.sleep(pause_after(refused))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def pause_after(refused: grpc.aio.AioRpcError) -> float:
    """Return the seconds until a call is repeated: about the engine's own hint, else a short while."""
    if refused.code() is not OVERLOADED:
        return AGAIN_SECONDS
    hint = dict(refused.trailing_metadata() or ()).get("retry-after-ms", "500")
    return float(hint) / 1000 * random.uniform(0.5, 1.5)


class Load:
    """One run of the load."""

    def __init__(self, fleet: Fleet, starts: Path, rate: float, look: float, seed: int, name: str) -> None:
        self._fleet = fleet
        self._file = starts.open("a", encoding="utf-8")
        self._rate = rate
        self._look = look
        self._dice = random.Random(seed)
        self._name = name
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopping = asyncio.Event()
        self.ended: Counter[str] = Counter()
        self.refusals: list[str] = []
        self.live: set[str] = set()
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            await self._room.acquire()
            if self.stopping.is_set():
                break
            self._spawn(self._ceremony(number))
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), self._dice.expovariate(self._rate))
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.refusals.append(f"{type(error).__name__}: {str(error)[:300]}")

    async def _ceremony(self, number: int) -> None:
        try:
            instance_id, definition = await self._start(number)
        finally:
            self._room.release()
        self.live.add(instance_id)
        try:
            await self._see_through(instance_id, definition)
        finally:
            self.live.discard(instance_id)

    async def _start(self, number: int) -> tuple[str, str]:
        definition, _, inputs = self._dice.choices(MIX, [weight for _, weight, _ in MIX])[0]
        correlation = f"corr-{self._name}-{number}" if number % 2 else ""
        request = pb.StartPlanningCeremonyRequest(
            ceremony_id=f"{self._name}-{number}",
            definition_name=definition,
            story_id="S1",
            requested_by="load",
            correlation_id=correlation,
            request_id=f"{self._name}-{number}",
        )
        request.inputs_json.update(inputs)
        answer = await self._fleet.call("StartPlanningCeremony", request)
        line = {
            "instance_id": answer.instance_id,
            "definition_name": definition,
            "correlation_id": correlation,
            "at": time.time(),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.counts["starts"] += 1
        return answer.instance_id, definition

    async def _see_through(self, instance_id: str, definition: str) -> None:
        pause = LOOK_SECONDS
        triggered = definition == "approval" and self._dice.random() < TRIGGERED
        while True:
            await asyncio.sleep(pause * self._dice.uniform(0.7, 1.3))
            pause = min(1.5 * pause, self._look)
            found = await self._get(instance_id)
            while found is not None and found.open_gates and found.status not in ENDED:
                if triggered:
                    await self._trigger(found)
                    triggered = False
                else:
                    await self._decide(found, found.open_gates[0])
                found = await self._get(instance_id)
            if found is not None and found.status in ENDED:
                self.ended[found.status] += 1
                return

    async def _get(self, instance_id: str) -> pb.PlanningCeremonyInstance | None:
        """Return None while an accepted start is not yet folded; the checker judges those that stay so."""
        request = pb.GetPlanningCeremonyInstanceRequest(instance_id=instance_id)
        answer = await self._fleet.call("GetPlanningCeremonyInstance", request)
        return answer.ceremony if answer.success else None

    async def _decide(self, found: pb.PlanningCeremonyInstance, gate: pb.OpenGate) -> None:
        request = pb.DecideGateRequest(
            instance_id=found.instance_id,
            approved=bool(gate.guard) or self._dice.random() >= REJECTED,
            visit=gate.visit,
            actor=f"{gate.role.lower() or 'person'}-{gate.approvals}",
            role=gate.role,
            request_id=f"{found.instance_id}-{gate.step_id or gate.guard}-{gate.visit}-{gate.approvals}",
        )
        if gate.guard:
            request.guard = gate.guard
        else:
            request.step_id = gate.step_id
        await self._ask("DecideGate", request)
        self.counts["decisions"] += 1

    async def _trigger(self, found: pb.PlanningCeremonyInstance) -> None:
        request = pb.TriggerTransitionRequest(
            instance_id=found.instance_id, trigger="decline", actor="load", request_id=f"{found.instance_id}-decline"
        )
        await self._ask("TriggerTransition", request)
        self.counts["triggers"] += 1

    async def _ask(self, method: str, request: Any) -> None:
        """Send a request. An earlier copy may have done the work, or a deadline may have passed: no error."""
        try:
            await self._fleet.call(method, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            self.counts["overtaken"] += 1
            await asyncio.sleep(AGAIN_SECONDS)


def summary(load: Load, fleet: Fleet) -> dict[str, Any]:
    return {
        **load.counts,
        "ended": dict(load.ended),
        "repeated_calls": fleet.repeated,
        "refusals": load.refusals[:20],
        "not_ended": sorted(load.live)[:20],
    }


async def serve(options: argparse.Namespace, runner: int) -> None:
    """Run the load until stdin closes. `runner`: the process that started it."""
    fleet = Fleet(options.address)
    load = Load(fleet, options.starts, options.rate, options.look, options.seed, options.name)
    loop = asyncio.get_running_loop()
    with _at_end_of_stdin(loop, load.stopping.set):
        running = loop.create_task(load.run())
        stopping = loop.create_task(load.stopping.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        killed = loop.create_task(_killed(runner))  # and the engine with it: no ceremony would ever end
        await asyncio.wait({running, killed}, timeout=options.drain, return_when=asyncio.FIRST_COMPLETED)
    if not killed.done():
        print(json.dumps(summary(load, fleet)), flush=True)
    killed.cancel()
    running.cancel()
    await fleet.close()


async def _killed(runner: int) -> None:
    """Return once the runner has ended: the system closes our stdin before it gives us another parent."""
    while os.getppid() == runner:
        await asyncio.sleep(AGAIN_SECONDS)


@contextlib.contextmanager
def _at_end_of_stdin(loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> Iterator[None]:
    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            then()

    loop.add_reader(sys.stdin.fileno(), readable)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    runner = os.getppid()  # before anybody can see that the load has begun, or be killed
    parser = argparse.ArgumentParser(prog="python -m tests.faults.load", description=__doc__)
    parser.add_argument("--address", action="append", required=True, help="host:port of a worker; may be repeated")
    parser.add_argument("--starts", type=Path, required=True, help="append accepted starts to this file")
    parser.add_argument("--rate", type=float, default=20.0, help="starts per second")
    parser.add_argument("--look", type=float, default=3.0, help="longest pause between looks at one ceremony, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", required=True, help="first part of the ceremony ids")
    parser.add_argument("--drain", type=float, default=120.0, help="seconds until all must have ended")
    asyncio.run(serve(parser.parse_args(), runner))


if __name__ == "__main__":
    main()
