"""The callers and the people of a live run: ceremonies start at a fixed rate, and each gate is approved as it opens.

Run as `python -m tests.benchmarks.live_load`, options as JSON on stdin, the answer as JSON on stdout. It reads the
stream CEREMONY as any consumer does, and counts from the time at which a start was due.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any

import msgspec
import nats
import uvloop
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient, PlanningCeremonyError
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy

from tests.benchmarks.intake_load import CHANNELS
from tests.benchmarks.serial import percentile

DEFINITION, STORY = "backlog_review", "s1"
INPUTS = {"title": "Log in with a passkey"}
GATE, ROLE = "approve_story", "PRODUCT_OWNER"
STARTED, OPENED, DECIDED = "ceremony.started", "ceremony.gate.opened", "ceremony.gate.decided"
EXECUTED, COMPLETED = "ceremony.step.executed", "ceremony.completed"
# Names of the hops.
CALL, APPROVAL, TO_NATS = "start call", "approval call", "append to NATS"
ASKED, GATHERED, PUBLISHED = "start to first answer", "start to gate", "decision to end"


class Options(msgspec.Struct, kw_only=True):
    """One live run."""

    addresses: list[str]
    """Addresses of the workers' gRPC servers; calls go to each in turn."""
    nats: str
    name: str
    """Prefix of the ceremonies' ids."""
    rate: float
    """Starts a second."""
    seconds: float
    """Seconds that count."""
    skip_seconds: float
    """Uncounted seconds before them."""
    wait_seconds: float
    """Longest wait for the last ceremonies after the last start."""


class Times(msgspec.Struct):
    """Percentiles in milliseconds."""

    p50_ms: float
    p99_ms: float


class Measured(msgspec.Struct, kw_only=True):
    """Measurements of one run."""

    began: float
    """Wall clock of the first start that counts."""
    ended: float
    """Wall clock at which the last ceremony that counts was complete, or the wait was over."""
    due: int
    """Ceremonies that count."""
    completed: int
    whole: Times
    """From when the start was due until `ceremony.completed` was read from JetStream."""
    hops: dict[str, Times]
    """Calls by this process's clock; the others between timestamps of the log, and from there to this consumer."""
    failed: dict[str, int]
    """Failed calls by the client's description."""
    cpu_seconds: float
    """CPU of this process while it counted."""


class Envelope(msgspec.Struct):
    """The fields of an event that the run looks at."""

    timestamp: datetime
    correlation_id: str
    payload: dict[str, Any]


_decode = msgspec.json.Decoder(Envelope).decode


class Life:
    """The times of one ceremony."""

    __slots__ = ("due", "ended", "logged")

    def __init__(self, due: float) -> None:
        self.due = due
        """Wall clock."""
        self.ended: float | None = None
        self.logged: dict[str, float] = {}
        """Log time of the first event of each subject."""


class LiveLoad:
    """Starts ceremonies, decides gates, and keeps the times."""

    def __init__(self, options: Options, clients: Sequence[AsyncPlanningCeremonyClient]) -> None:
        self._options = options
        self._clients = clients
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0
        self._hops: dict[str, list[float]] = defaultdict(list)
        self.lives: dict[str, Life] = {}
        self._open = 0
        self.counts_from = 0.0
        self._cpu_from = 0.0
        self._idle = asyncio.Event()
        self.failed: Counter[str] = Counter()

    async def run(self) -> Measured:
        options = self._options
        began = time.time()
        self.counts_from = began + options.skip_seconds
        until = self.counts_from + options.seconds
        sent = 0
        while (due := began + sent / options.rate) < until:
            if (ahead := due - time.time()) > 0:
                await asyncio.sleep(ahead)
            if not self._cpu_from and due >= self.counts_from:
                self._cpu_from = time.process_time()
            self._spawn(self._start(sent, due))
            sent += 1
        try:
            async with asyncio.timeout(options.wait_seconds):
                while self._open or self._tasks:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            pass
        return self.measured(time.time())

    async def on_event(self, message: Msg) -> None:
        """Take one message of the stream."""
        now = time.time()
        event = _decode(message.data)
        life = self.lives.get(event.correlation_id)
        if life is None:
            return
        at = event.timestamp.timestamp()
        life.logged.setdefault(message.subject, at)
        if life.due >= self.counts_from:
            self._hops[TO_NATS].append(now - at)
        if message.subject == OPENED:
            self._spawn(self._approve(event.correlation_id, life))
        elif message.subject == COMPLETED:
            life.ended = now
            self._open -= 1
            self._idle.set()

    async def _start(self, number: int, due: float) -> None:
        ceremony_id = f"{self._options.name}-{number}"
        life = self.lives[f"{ceremony_id}:{STORY}"] = Life(due)
        self._open += 1
        call = self._client().start(
            DEFINITION,
            ceremony_id=ceremony_id,
            story_id=STORY,
            requested_by="benchmark",
            inputs=INPUTS,
            correlation_id=f"{ceremony_id}:{STORY}",
        )
        await self._timed(CALL, life, due, call)

    async def _approve(self, instance_id: str, life: Life) -> None:
        call = self._client().decide(instance_id, approved=True, actor="bench", role=ROLE, step_id=GATE)
        await self._timed(APPROVAL, life, time.time(), call)

    async def _timed(self, hop: str, life: Life, began: float, call: Coroutine[Any, Any, Any]) -> None:
        try:
            await call
        except PlanningCeremonyError as error:
            self.failed[f"{error.status.name} {error.message.partition(':')[0]}"[:60]] += 1
            return
        if life.due >= self.counts_from:
            self._hops[hop].append(time.time() - began)

    def _client(self) -> AsyncPlanningCeremonyClient:
        self._turn += 1
        return self._clients[self._turn % len(self._clients)]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._idle.set()

    def measured(self, now: float) -> Measured:
        counted = [life for life in self.lives.values() if life.due >= self.counts_from]
        ended = [life for life in counted if life.ended is not None]
        for life in ended:
            self._between(ASKED, life, STARTED, EXECUTED)
            self._between(GATHERED, life, STARTED, OPENED)
            self._between(PUBLISHED, life, DECIDED, COMPLETED)
        # One that did not end waits at least until now.
        whole = [(life.ended or now) - life.due for life in counted]
        return Measured(
            began=self.counts_from,
            ended=max((life.ended or now for life in counted), default=now),
            due=len(counted),
            completed=len(ended),
            whole=times(whole),
            hops={hop: times(seconds) for hop, seconds in self._hops.items()},
            failed=dict(self.failed),
            cpu_seconds=time.process_time() - self._cpu_from,
        )

    def _between(self, hop: str, life: Life, first: str, last: str) -> None:
        if first in life.logged and last in life.logged:
            self._hops[hop].append(life.logged[last] - life.logged[first])


def times(seconds: Sequence[float]) -> Times:
    ordered = sorted(1000 * one for one in seconds)
    return Times(percentile(ordered, 50), percentile(ordered, 99))


async def measure(options: Options) -> Measured:
    clients = [AsyncPlanningCeremonyClient(options.addresses[n % len(options.addresses)]) for n in range(CHANNELS)]
    connection = await nats.connect(options.nats)
    run = LiveLoad(options, clients)
    try:
        await connection.jetstream().subscribe(
            "ceremony.>", stream="CEREMONY", ordered_consumer=True, cb=run.on_event, deliver_policy=DeliverPolicy.NEW
        )
        return await run.run()
    finally:
        await connection.close()
        for client in clients:
            await client.close()


def main() -> None:
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=Options)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(measure(options))))


if __name__ == "__main__":
    main()
