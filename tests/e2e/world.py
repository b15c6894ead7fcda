"""A world for tests: a log, a real nats-server, the simulated Ray executor, a worker, and clients of all three.

The worker runs in the test's own loop (`World.worker`), or as a process that can be killed (`WorkerProcess`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from unittest import mock

import grpc.aio
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

from bridge.clock import HostClock
from ceremony.dev import ray_simulation
from ceremony.dev.ray_simulation import Knobs, RaySimulation
from ceremony.dev.ray_simulation.service import RayExecutorService
from ceremony.settings import Settings
from ceremony.worker import Worker
from tests.bridge.nats.world import stored
from tests.contract.asyncapi import validate_sent
from tests.services import NatsServer, free_port

if TYPE_CHECKING:  # exists only in the type stubs
    from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorAsyncStub

# Seconds a condition may take on a loaded machine before a test fails.
PATIENCE = 60.0
ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "specs" / "ceremonies"
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
QUICK = Knobs(latency=0.02, jitter=0.01)

# Inputs of a start of each definition of `specs/ceremonies`.
INPUTS: Mapping[str, Mapping[str, Any]] = {
    "approval": {},
    "backlog_review": {"title": "Pay by card", "description": "Visitors pay at the desk"},
    "merge_chain": {"payload": {"a": 1, "b": [True, None]}},
    "planning": {"title": "Pay by card", "score": {"value": 0.9}, "urgent": "yes"},
    "refinement": {"draft": {"text": "A"}, "defaults": {"size": 3}, "labels": ["x"], "more_labels": ["x", "y"]},
}


class Message(NamedTuple):
    """One message of the stream CEREMONY."""

    subject: str
    envelope: dict[str, Any]
    headers: Mapping[str, str]
    sequence: int


class NotingService(RayExecutorService):
    """Records each requested execution as (metadata, request)."""

    calls: list[tuple[dict[str, str], Any]]

    async def _execute(self, request: Any, kind: Any, context: Any) -> Any:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        self.calls.append((metadata, request))
        return await super()._execute(request, kind, context)


class RecordingRay(RaySimulation):
    """The simulation, which also records each request with its metadata."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.calls: list[tuple[dict[str, str], Any]] = []

    async def start(self) -> None:
        noting = type("Noting", (NotingService,), {"calls": self.calls})
        with mock.patch.object(ray_simulation, "RayExecutorService", noting):
            await super().start()


async def until(holds: Callable[[], Awaitable[Any] | Any], what: str, seconds: float = PATIENCE) -> Any:
    """Poll until `holds` returns something true, and return that. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.05)


def worker_settings(log_url: str, nats_url: str, ray_url: str, **more: Any) -> dict[str, Any]:
    """Settings of a worker for tests, by the names of their variables."""
    return {
        "CEREMONY_LOG": log_url,
        "NATS_URL": nats_url,
        "RAY_EXECUTOR_URL": ray_url,
        "CEREMONY_PARTITIONS": 3,
        "CEREMONIES_DIR": str(SPECS),
        "PLANNING_CEREMONY_GRPC_ADDR": "127.0.0.1:0",
        "CEREMONY_HTTP_ADDR": "127.0.0.1:0",
        "CEREMONY_TAKE_OVER_GRACE_SECONDS": 0,
        "CEREMONY_DRAIN_SECONDS": 0,
        "CEREMONY_STOP_SECONDS": 60,  # a dozen workers may stop in one loop
        **more,
    }


class World:
    """Inside `async with World(folder, log_url, ...)` everything runs and the worker is ready."""

    def __init__(
        self, folder: Path, log_url: str, *, knobs: Knobs = QUICK, start_ray: bool = True, **settings: Any
    ) -> None:
        self.folder = folder
        self.log_url = log_url
        self.clock = HostClock()
        self.nats = NatsServer(folder / "nats")
        self.ray_port = free_port()
        self._knobs = knobs
        self._start_ray = start_ray
        self.settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._worker_stack = contextlib.AsyncExitStack()
        self.ray: RecordingRay = self.new_ray()
        self.worker: Worker
        self.client: AsyncPlanningCeremonyClient
        self.channel: grpc.aio.Channel
        self.stub: PlanningCeremonyProcessorAsyncStub
        """The client does not retry, so that a test sees each response of the server."""

    # -- life

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            await asyncio.to_thread(self.nats.start)
            self._stack.callback(self.nats.stop)
            self._stack.push_async_callback(self.stop_ray)
            if self._start_ray:
                await self.ray.start()
            self._stack.push_async_callback(self.stop_worker)
            await self.start_worker()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.nats.pid is not None:
                await self.validate_sent()
        finally:
            await self._stack.aclose()

    async def validate_sent(self) -> None:
        """Check every message that the engine has sent against the AsyncAPI document."""
        # specification 16.6, 16.12
        for message in await stored(self.nats.url):
            validate_sent(message.subject, message.headers or {}, message.data)

    def new_ray(self) -> RecordingRay:
        address = f"127.0.0.1:{self.ray_port}"
        return RecordingRay(grpc_address=address, nats_url=self.nats.url, clock=self.clock, knobs=self._knobs)

    async def stop_ray(self) -> None:
        await self.ray.stop()

    async def start_worker(self) -> None:
        """Start a worker on the world's log, which holds the records of the last worker."""
        told = worker_settings(self.log_url, self.nats.url, f"127.0.0.1:{self.ray_port}", **self.settings)
        self.worker = await self._worker_stack.enter_async_context(Worker(Settings(**told)))
        address = f"127.0.0.1:{self.worker.grpc.port}"
        self.client = await self._worker_stack.enter_async_context(AsyncPlanningCeremonyClient(address))
        self.channel = await self._worker_stack.enter_async_context(
            grpc.aio.insecure_channel(address, options=NO_RETRIES)
        )
        self.stub = PlanningCeremonyProcessorStub(self.channel)
        await self.ready()

    async def stop_worker(self) -> None:
        await self._worker_stack.aclose()

    def move_to(self, log_url: str, **settings: Any) -> None:
        """Have the next worker run on another log, and with other settings."""
        self.log_url = log_url
        self.settings = {**self.settings, **settings}

    async def restart_worker(self) -> None:
        await self.stop_worker()
        await self.start_worker()

    async def ready(self) -> None:
        """True when log, tables and NATS are ready. Tests that need the Ray executor wait for it themselves."""
        await until(lambda: self.ok("log", "tables", "nats"), "the worker is ready")

    def ok(self, *neighbours: str) -> bool:
        states = self.worker.readiness.states()
        return all(states[name] == "ok" for name in neighbours)

    # -- actions and reads of tests

    async def start(self, definition: str, ceremony_id: str, **more: Any) -> str:
        more.setdefault("inputs", INPUTS.get(definition, {}))
        more.setdefault("story_id", "S1")
        more.setdefault("requested_by", "anna")
        return await self.client.start(definition, ceremony_id=ceremony_id, **more)

    async def get(self, instance_id: str) -> pb.PlanningCeremonyInstance:
        found = await self.client.get(instance_id)
        assert found is not None, f"{instance_id} is unknown"
        return found

    async def finish(self, instance_id: str, seconds: float = PATIENCE) -> pb.PlanningCeremonyInstance:
        """Approve open gates until the ceremony has ended; return its last state."""
        return await finish(self.client, instance_id, seconds)

    async def messages(self, *instance_ids: str) -> list[Message]:
        """Messages of the stream CEREMONY, of these instances or of all, in the stream's order."""
        return await messages(self.nats.url, *instance_ids)

    async def dead_letters(self, code: str) -> list[pb.DeadLetter]:
        found = await self.client.dead_letters(limit=1000)
        return [letter for letter in found.dead_letters if letter.code == code]

    async def http(self, path: str) -> tuple[int, str]:
        """Status and body of a GET request."""
        return await asyncio.to_thread(http_get, f"http://127.0.0.1:{self.worker.http.port}{path}")


NO_RETRIES = (
    ("grpc.enable_retries", 0),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


async def finish(
    client: AsyncPlanningCeremonyClient, instance_id: str, seconds: float = PATIENCE
) -> pb.PlanningCeremonyInstance:
    """Approve the first open gate again and again until the ceremony has ended."""
    deadline = time.monotonic() + seconds
    while True:
        found = await client.get(instance_id)
        assert found is not None, f"{instance_id} is unknown"
        if found.status in ENDED:
            return found
        assert time.monotonic() < deadline, f"not ended within {seconds:.0f} s: {found}"
        if not found.open_gates:
            await asyncio.sleep(0.05)
            continue
        gate = found.open_gates[0]
        await client.decide(
            instance_id,
            approved=True,
            actor=f"person-{gate.approvals}",
            role=gate.role,
            step_id=gate.step_id or None,
            guard=gate.guard or None,
            visit=gate.visit,
        )


async def messages(nats_url: str, *instance_ids: str) -> list[Message]:
    """Messages of the stream CEREMONY, including those of publish steps, which are found by their key."""
    found = []
    for message in await stored(nats_url):
        envelope = json.loads(message.data)
        one = Message(message.subject, envelope, dict(message.headers or {}), message.metadata.sequence.stream)
        if not instance_ids or any(belongs(one, instance_id) for instance_id in instance_ids):
            found.append(one)
    return found


def belongs(message: Message, instance_id: str) -> bool:
    key = str(message.envelope["idempotency_key"])
    return message.envelope["payload"].get("instance_id") == instance_id or key.startswith(f"publish/{instance_id}/")


def http_get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class WorkerProcess:
    """`ceremony serve` as a process on fixed ports, which can be killed and started again."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], module: str = "ceremony_engine") -> None:
        self._module = module
        self.grpc_port, self.http_port = free_port(), free_port()
        self._output = folder / "worker.log"
        self._environment = {
            **os.environ,
            **{name: str(value) for name, value in settings.items()},
            "PLANNING_CEREMONY_GRPC_ADDR": f"127.0.0.1:{self.grpc_port}",
            "CEREMONY_HTTP_ADDR": f"127.0.0.1:{self.http_port}",
            "LOG_LEVEL": "INFO",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def start(self) -> None:
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, "serve"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    async def ready(self) -> None:
        await until(self._answers_ready, f"worker ready; its last words: {self.last_words()}")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def must_live(self) -> None:
        """Raises AssertionError with the last log lines if the worker has ended by itself."""
        assert self._process is not None
        assert self._process.poll() is None, f"the worker ended by itself: {self.last_words()}"

    async def _answers_ready(self) -> bool:
        self.must_live()
        try:
            status, _ = await asyncio.to_thread(http_get, f"http://127.0.0.1:{self.http_port}/readyz")
        except OSError:
            return False
        return status == 200

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return " | ".join(self._output.read_text(errors="replace").splitlines()[-8:])
        return "none"

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        """Send SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Send SIGSTOP: the process freezes with every connection open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def terminate(self, seconds: float = 30) -> int:
        """Send SIGTERM; return the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(seconds)
