"""Measures how long an honest client waits while another one attacks the front; exit 0 if its p99 at most doubles.

Windows without the attack and windows with it take turns, so that other work of the machine falls on both; an attacker
is a process that lives for one window. A p99 that more than doubles is sound only if it rises by no more than the
machine's jitter: the difference between every other window without the attack and the rest of them.
`python -m tests.pressure.attacks` runs all attacks for 20 seconds each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub
from google.protobuf.struct_pb2 import Struct, Value

from bridge.clock import HostClock
from ceremony import descriptors
from streams.dead_letters import dead_letter_record
from streams.topology import topics
from streams.transport.sqlite.log import SqliteLog
from tests.benchmarks.processes import MeasuredNats
from tests.faults.world import ROOT, SPECS, WorkerServer
from tests.services import free_port, running

PREFIX, PARTITIONS = "attacked", 4
DEFINITION = "merge_chain"
CALLERS = 8
HALF_REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
# Between two calls of the honest client.
PACE_SECONDS = 0.02
# The p99 of the calls with the attack over that of the calls without it.
LARGEST_RATIO = 2.0
# A window with the attack or without it.
WINDOW_SECONDS = 2.5
OPTIONS = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))


@dataclass(frozen=True, slots=True)
class Target:
    """The addresses of the attacked worker."""

    grpc: str
    http: str


@dataclass(frozen=True, slots=True)
class Waits:
    """What the honest client measured."""

    calls: int
    failed: int
    median_ms: float
    p99_ms: float
    worst_ms: float


@dataclass(frozen=True, slots=True)
class Attacked:
    """One attack: the calls with it and those without it."""

    attack: str
    without: Waits
    during: Waits
    jitter_ms: float
    """The difference between two p99s without the attack, each of every other window."""
    answers: dict[str, int]
    """The attacker's calls or connections by their outcome."""

    @property
    def ratio(self) -> float:
        return round(self.during.p99_ms / self.without.p99_ms, 2)

    @property
    def sound(self) -> bool:
        within_jitter = self.during.p99_ms - self.without.p99_ms <= self.jitter_ms
        return not self.during.failed and (within_jitter or self.ratio <= LARGEST_RATIO)


# -- the attackers, each in its own process


def structs(megabytes: float) -> bytes:
    """A start with a Struct of so many MiB, encoded once."""
    request = pb.StartPlanningCeremonyRequest(
        ceremony_id="attack", story_id="S", definition_name=DEFINITION, requested_by="mallory"
    )
    values = [Value(number_value=1)] * int(megabytes * 1024 * 1024 / 11 * 0.99)
    inputs = Struct()
    inputs.fields["payload"].list_value.values.extend(values)
    request.inputs_json.CopyFrom(inputs)
    return request.SerializeToString()


def texts() -> bytes:
    """A start with JSON in a text that is as large as one may be that is parsed."""
    request = pb.StartPlanningCeremonyRequest(
        ceremony_id="attack", story_id="S", definition_name=DEFINITION, requested_by="mallory"
    )
    request.inputs["payload"] = "[" + "[]," * 87_000 + "x]"
    request.inputs["more"] = "[" + "[]," * 87_000 + "x]"
    return request.SerializeToString()


async def call_for_ever(target: Target, method: str, request: bytes, answers: Counter[str]) -> None:
    """Call as fast as the answers come, CALLERS at a time on two connections."""
    channels = [grpc.aio.insecure_channel(target.grpc, options=OPTIONS) for _ in range(2)]

    async def caller(number: int) -> None:
        call: Any = channels[number % 2].unary_unary(f"/{SERVICE_NAME}/{method}")
        while True:
            try:
                await call(request, timeout=60)
                answers["OK"] += 1
            except grpc.aio.AioRpcError as error:
                answers[error.code().name] += 1

    await asyncio.gather(*map(caller, range(CALLERS)))


async def connect_for_ever(address: str, count: int, data: bytes, answers: Counter[str]) -> None:
    """Hold so many connections that send this and then nothing; those that end begin anew."""
    host, _, port = address.rpartition(":")

    async def one() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(data)
                answers["opened"] += 1
                while await reader.read(1000):
                    pass
                writer.close()
            except OSError:
                answers["refused"] += 1
            await asyncio.sleep(1)

    await asyncio.gather(*(one() for _ in range(count)))


SERVICE_NAME = "fleet.planning_ceremony.v1.PlanningCeremonyProcessor"
Attack = Callable[[Target, Counter[str]], Coroutine[Any, Any, None]]
ATTACKS: dict[str, Attack] = {
    "structs of 4 MB": lambda to, seen: call_for_ever(to, "StartPlanningCeremony", structs(3.9), seen),
    "structs of 1.9 MB": lambda to, seen: call_for_ever(to, "StartPlanningCeremony", structs(1.9), seen),
    "structs of 1.3 MB": lambda to, seen: call_for_ever(to, "StartPlanningCeremony", structs(1.3), seen),
    "texts of 0.5 MB": lambda to, seen: call_for_ever(to, "StartPlanningCeremony", texts(), seen),
    "diagnose": lambda to, seen: call_for_ever(to, "Diagnose", b"", seen),
    "dead letters": lambda to, seen: call_for_ever(
        to, "ListDeadLetters", pb.ListDeadLettersRequest(limit=1000, offset=500).SerializeToString(), seen
    ),
    "list": lambda to, seen: call_for_ever(
        to,
        "ListPlanningCeremonyInstances",
        pb.ListPlanningCeremonyInstancesRequest(limit=1000, offset=1000).SerializeToString(),
        seen,
    ),
    "half HTTP requests": lambda to, seen: connect_for_ever(
        to.http, 1_100, b"GET /livez HTTP/1.1\r\nHost: x\r\n", seen
    ),
    "raw sockets": lambda to, seen: connect_for_ever(to.grpc, 3_000, b"", seen),
}


async def attack(name: str, target: Target) -> None:
    """Attack until the end of stdin, then print the outcomes."""
    answers: Counter[str] = Counter()
    attacking: asyncio.Task[None] = asyncio.create_task(ATTACKS[name](target, answers))
    while not answers:
        await asyncio.sleep(0.05)
    print("attacking", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    attacking.cancel()
    print(json.dumps(answers), flush=True)


# -- the honest client


@dataclass(slots=True)
class Calls:
    """The honest client's calls of some windows."""

    waits_ms: list[float] = field(default_factory=list)
    failed: int = 0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.waits_ms + other.waits_ms, self.failed + other.failed)

    def waits(self) -> Waits:
        ordered = sorted(self.waits_ms)
        return Waits(
            calls=len(ordered),
            failed=self.failed,
            median_ms=round(statistics.median(ordered), 1),
            p99_ms=round(ordered[int(len(ordered) * 0.99)], 1),
            worst_ms=round(ordered[-1], 1),
        )


async def honest(target: Target, seconds: float, label: str) -> Calls:
    """Start and get ceremonies at a steady pace. The first call, which connects, is not measured."""
    calls = Calls()
    async with grpc.aio.insecure_channel(target.grpc, options=OPTIONS) as channel:
        stub: Any = PlanningCeremonyProcessorStub(channel)
        await _call(stub, f"{label}-0", start=False)
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            number += 1
            began = time.monotonic()
            try:
                await _call(stub, f"{label}-{number // 2}", start=number % 2 == 0)
            except grpc.aio.AioRpcError:
                calls.failed += 1
            calls.waits_ms.append((time.monotonic() - began) * 1000)
            await asyncio.sleep(max(0.0, PACE_SECONDS - (time.monotonic() - began)))
    return calls


async def _call(stub: Any, name: str, *, start: bool) -> None:
    if not start:
        await stub.GetPlanningCeremonyInstance(pb.GetPlanningCeremonyInstanceRequest(instance_id="row-1:S"), timeout=30)
        return
    request = pb.StartPlanningCeremonyRequest(
        ceremony_id=name, story_id="S", definition_name=DEFINITION, requested_by="anna", inputs={"payload": "{}"}
    )
    await stub.StartPlanningCeremony(request, timeout=30)


# -- a run


async def fill_log(path: Path, letters: int) -> None:
    """Make the embedded log with so many dead letters, before a worker opens it."""
    log = SqliteLog(path, HostClock())
    await log.start()
    try:
        await log.create(topics(PREFIX, PARTITIONS))
        for first in range(0, letters, 500):
            await asyncio.gather(*(_append(log, number) for number in range(first, min(first + 500, letters))))
    finally:
        await log.stop()


async def _append(log: SqliteLog, number: int) -> None:
    partition = number % PARTITIONS
    letter = dead_letter_record(
        f"{PREFIX}.commands", partition, number, f"code{number % 5}", "x" * 500, key=None, value=b"y" * 500
    )
    await log.append(f"{PREFIX}.deadletters", partition, *letter)


async def fill_rows(target: Target, rows: int) -> None:
    async with grpc.aio.insecure_channel(target.grpc, options=OPTIONS) as channel:
        stub: Any = PlanningCeremonyProcessorStub(channel)
        for first in range(0, rows, 100):
            await asyncio.gather(*(_call(stub, f"row-{first + n}", start=True) for n in range(min(100, rows - first))))


async def attacked(name: str, target: Target, seconds: float) -> Attacked:
    """Run windows in turn until both kinds have lasted so many seconds."""
    label = name.replace(" ", "_").replace(".", "_")
    count = max(2, round(seconds / WINDOW_SECONDS))
    without, during = [], []
    answers: Counter[str] = Counter()
    for number in range(count):
        without.append(await honest(target, seconds / count, f"{label}-{number}-without"))
        with _attacker(name, target) as process:
            if process.stdout is not None:
                await asyncio.to_thread(process.stdout.readline)  # its first answer has come
            during.append(await honest(target, seconds / count, f"{label}-{number}-during"))
            output, _ = await asyncio.to_thread(process.communicate, "")
        answers.update(json.loads(output or "{}"))
    halves = [sum(without[half::2], Calls()).waits().p99_ms for half in (0, 1)]
    return Attacked(
        attack=name,
        without=sum(without, Calls()).waits(),
        during=sum(during, Calls()).waits(),
        jitter_ms=round(abs(halves[0] - halves[1]), 1),
        answers=dict(answers),
    )


@contextlib.contextmanager
def _attacker(name: str, target: Target) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.pressure.attacks", "--attacker", name, target.grpc, target.http]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def measure(names: Sequence[str], seconds: float, rows: int, letters: int) -> Iterator[Attacked]:
    """Run these attacks, one after the other, on one worker with so many rows and dead letters."""
    with tempfile.TemporaryDirectory(prefix="ceremony-attacks-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        uvloop.run(fill_log(folder / "log.db", letters))
        nats = stack.enter_context(running(MeasuredNats(folder / "nats", sync_always=False)))
        environment = {
            "CEREMONY_LOG": f"sqlite://{folder}/log.db",
            "CEREMONY_TOPIC_PREFIX": PREFIX,
            "CEREMONY_PARTITIONS": PARTITIONS,
            "CEREMONIES_DIR": SPECS,
            "NATS_URL": nats.url,
            "RAY_EXECUTOR_URL": f"127.0.0.1:{free_port()}",
            "READINESS_REQUIRES": "log,tables",
            "LOG_LEVEL": "WARNING",
        }
        worker = stack.enter_context(running(WorkerServer(folder / "worker", environment)))
        target = Target(worker.address, f"127.0.0.1:{worker.http_port}")
        uvloop.run(fill_rows(target, rows))
        for one in names:
            yield uvloop.run(attacked(one, target, seconds))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pressure.attacks", description=__doc__)
    parser.add_argument("--attack", action="append", choices=list(ATTACKS), help="default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="of all windows with an attack, and without")
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--letters", type=int, default=20_000)
    parser.add_argument("--attacker", nargs=3, metavar=("NAME", "GRPC", "HTTP"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    descriptors.raise_limit()
    if options.attacker:
        name, *addresses = options.attacker
        uvloop.run(attack(name, Target(*addresses)))
        os._exit(0)  # its calls and connections need no clean end
    sound = True
    for result in measure(options.attack or list(ATTACKS), options.seconds, options.rows, options.letters):
        judged = {"ratio": result.ratio, "sound": result.sound}
        print(json.dumps({**asdict(result), **judged}), flush=True)
        sound = sound and result.sound
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
