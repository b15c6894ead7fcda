"""Helpers of the conformance tests: a place for one test on either log, apps on it, and worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.clock import HostClock
from ports.log import AgentSpec, Record, TableSpec, TopicSpec
from streams.transport.app import AgentFunction, CeremonyApp, create_app

PARTITIONS = 4
ROOT = Path(__file__).resolve().parents[3]
SETTLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """The log of one test; `prefix` begins the names of its topics and group."""

    url: str
    folder: Path
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")

    @property
    def embedded(self) -> bool:
        return self.url.startswith("sqlite:")

    def topic(self, name: str) -> str:
        return f"{self.prefix}.{name}"

    def taking_over(self) -> str:
        """The URL for an owner that does not wait for the end of the former one."""
        return f"{self.url}?take_over=1" if self.embedded else self.url

    def specs(self) -> list[TopicSpec]:
        return [
            TopicSpec(self.topic("in"), PARTITIONS),
            TopicSpec(self.topic("requests"), PARTITIONS, queue=True),
            TopicSpec(self.topic("out"), PARTITIONS),
            TopicSpec(self.topic("deadletters"), PARTITIONS),
        ]

    def app(self, *, url: str | None = None, worker_id: str | None = "w", **settings: Any) -> CeremonyApp:
        """Return an app that owns every partition. Its membership is static, so the next app waits for no session."""
        return create_app(
            self.prefix,
            url or self.url,
            clock=HostClock(),
            partitions=PARTITIONS,
            topics=self.specs(),
            prefix=self.prefix,
            worker_id=worker_id,
            **settings,
        )


# A table of integers.
COUNTS = TableSpec("counts", encode=lambda row: b"%d" % row, decode=int)


@asynccontextmanager
async def serving(app: CeremonyApp, *agents: tuple[AgentSpec, AgentFunction]) -> AsyncIterator[CeremonyApp]:
    """Start the app and wait until every partition is served; it must not crash before the end."""
    for spec, function in agents:
        app.attach(spec, function)
    await app.start()
    try:
        await settled(app)
        yield app
    finally:
        async with asyncio.timeout(SETTLE_SECONDS):
            await app.stop()
    assert app.failure is None, app.failure


@asynccontextmanager
async def beside(place: Place) -> AsyncIterator[CeremonyApp]:
    """Return an app with an open log and its topics, but without agents, to write and read records."""
    app = place.app()
    await app.commit_log.start()
    try:
        await app.commit_log.create(place.specs())
        yield app
    finally:
        await app.commit_log.stop()


async def settled(app: CeremonyApp) -> None:
    await eventually(lambda: app.settled or app.failure, SETTLE_SECONDS)
    assert app.failure is None, app.failure
    assert not app.unserved, app.unserved


async def eventually(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait until the condition holds; the TimeoutError names it."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {_where(condition)}") from None


def _where(condition: Callable[[], object]) -> str:
    code = condition.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


async def everything(app: CeremonyApp, topic: str) -> list[Record]:
    """Return all committed records of a topic, partition by partition in offset order."""
    records: list[Record] = []
    for partition, (start, end) in enumerate(await app.commit_log.ends(topic)):
        async for batch in app.commit_log.read(topic, partition, start, end):
            records.extend(batch)
    return records


async def at_least(app: CeremonyApp, topic: str, count: int) -> list[Record]:
    """Return all records of a topic, once there are this many."""
    async with asyncio.timeout(15.0):
        while sum(end - start for start, end in await app.commit_log.ends(topic)) < count:
            await asyncio.sleep(0.01)
    return await everything(app, topic)


async def load(app: CeremonyApp, topic: str, values: Sequence[tuple[bytes, bytes]]) -> None:
    """Append (key, value) pairs, each to the partition of its key, in order per partition."""
    queues: list[list[tuple[bytes, bytes]]] = [[] for _ in range(PARTITIONS)]
    for key, value in values:
        queues[app.commit_log.partition_of(key, PARTITIONS)].append((key, value))

    async def fill(partition: int) -> None:
        mine = queues[partition]
        for first in range(0, len(mine), 200):
            chunk = mine[first : first + 200]
            await asyncio.gather(*(app.commit_log.append(topic, partition, key, value) for key, value in chunk))

    await asyncio.gather(*map(fill, range(PARTITIONS)))


class Worker:
    """`worker.py` in a process of its own. It prints lines of words; the first word names the meaning of the line."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.said: list[list[str]] = []
        self._log = log
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def start(cls, place: Place, mode: str, *, url: str | None = None, static: bool = True) -> Worker:
        log = place.folder / f"worker-{uuid.uuid4().hex[:6]}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.transport.conformance.worker",
                mode,
                url or place.url,
                place.prefix,
                *(["w"] if static else []),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        return cls(process, log)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(line.decode().split())

    def last(self, word: str) -> int:
        """Return the newest number printed after this word, or 0."""
        return next((int(words[1]) for words in reversed(self.said) if words[0] == word), 0)

    async def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Wait for a condition on the printed lines; the process must not end before."""
        await eventually(lambda: condition() or self.process.returncode is not None, seconds)
        assert condition(), f"worker ended with {self.process.returncode}: {self.errors()}"

    async def reaches(self, word: str, number: int) -> None:
        """Wait until it has printed at least this number after this word."""
        await self.until(lambda: self.last(word) >= number)

    def errors(self) -> str:
        return self._log.read_text()[-3000:]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds: float = 20.0) -> int:
        """Return its exit status."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._reading)
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"worker did not end within {seconds} s: {self.errors()}") from None

    async def end(self, number: signal.Signals) -> int:
        self.send(number)
        return await self.ended()

    async def close(self) -> None:
        """End it, whatever its state."""
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()


@asynccontextmanager
async def worker(place: Place, mode: str, *, url: str | None = None, static: bool = True) -> AsyncIterator[Worker]:
    """Start a worker that ends at the latest with the block. With a `static` membership its successor need not wait."""
    running = await Worker.start(place, mode, url=url, static=static)
    try:
        yield running
    finally:
        await running.close()
