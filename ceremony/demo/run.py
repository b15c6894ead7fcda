"""`ceremony demo`: starts `ceremony dev` as a process, runs ceremonies through it, and accounts for each of them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient, PlanningCeremonyError

from bridge.nats.connection import NatsConnection
from ceremony.definition_files import Checked, check
from ceremony.demo.engine import PROGRAM, EngineProcess, engine, last_words
from ceremony.demo.people import People
from ceremony.demo.plan import PlannedStart, plan
from ceremony.demo.report import DemoReport, Missing
from ceremony.demo.stream import Seen, StreamReader, Tally
from ceremony.errors import DemoError
from ports.clock import Clock
from steps.registry import all_kinds
from tables.definition import Definition

HOST = "127.0.0.1"
SETTLE_SECONDS = 0.5
LOOK_SECONDS = 0.1
# For an engine that is ending: it stops its NATS before it writes the reason.
LAST_WORDS_SECONDS = 5.0
NAMED_MISSING = 50


@dataclass(frozen=True, slots=True)
class DemoOptions:
    count: int
    definitions: Sequence[str]
    """Empty: all of the folder, with half of the starts for `backlog_review`."""
    log: str | None
    """None: SQLite."""
    folder: Path | None
    """None: a temporary one, kept only if something went wrong."""
    ceremonies_dir: Path
    timeout: float
    """Seconds for the whole run except the clean end."""
    concurrency: int
    """Starts in flight."""
    dev_options: Sequence[str] = ()
    """Passed on to `ceremony dev`."""


@dataclass(slots=True)
class DemoProgress:
    """The counts so far, for the screen."""

    count: int
    accepted: int = 0
    refused: int = 0
    waiting: int = 0
    completed: int = 0
    ended_otherwise: int = 0
    events: int = 0

    @property
    def ended(self) -> int:
        return self.completed + self.ended_otherwise

    @property
    def running(self) -> int:
        return max(0, self.accepted - self.ended - self.waiting)


class Screen(Protocol):
    """Shows a person the progress."""

    def checked(self, found: Sequence[Checked]) -> None: ...

    def starting(self, folder: Path) -> None: ...

    def engine(self, running: Mapping[str, Any]) -> None: ...

    def progress(self, now: DemoProgress) -> None: ...


def engine_options(options: DemoOptions, folder: Path, stamp: str) -> list[str]:
    """The arguments of `ceremony dev` for a run with this stamp; `folder` is its own."""
    found = [str(folder), "--until-stdin-closes", "-o", "json"]
    found += ["--grpc-addr", f"{HOST}:0", "--http-addr", f"{HOST}:0"]
    found += ["--ceremonies-dir", str(options.ceremonies_dir)]
    if options.log is not None:
        # The topics of a broker outlive the folder, so each run has its own.
        found += ["--log", options.log, "--topic-prefix", stamp]
    return [*found, *options.dev_options]


class Demo:
    """One run. `run` returns the report, and leaves nothing running however it ends."""

    def __init__(self, options: DemoOptions, clock: Clock, screen: Screen) -> None:
        self.options = options
        self._clock = clock
        self._screen = screen
        self._stamp = f"demo-{int(clock.wall() * 10):x}"
        self._tally = Tally(self._stamp)
        self._accepted: list[PlannedStart] = []
        self._refused: dict[str, str] = {}
        self._missing: list[Missing] = []
        self._complaints: list[str] = []
        self._engine: dict[str, Any] = {}
        self._seconds = 0.0

    async def run(self) -> DemoReport:
        """Run the demo. Raises DemoError. A NATS that goes away ends the run with a complaint in the report."""
        definitions = self._chosen()
        folder = self.options.folder or Path(tempfile.mkdtemp(prefix="ceremony-demo-"))
        people: People | None = None
        report: DemoReport | None = None
        try:
            people = await self._run_in(folder, definitions)
            report = self._report(folder, people)
            return report
        finally:
            # A folder given by the user stays. So does one of a failed run, for its logs.
            if self.options.folder is None and report is not None and report.ok:
                shutil.rmtree(folder, ignore_errors=True)

    # -- before

    def _chosen(self) -> list[Definition]:
        found = check([self.options.ceremonies_dir], all_kinds())
        self._screen.checked(found)
        valid = {one.definition.name: one.definition for one in found if one.definition is not None}
        if unknown := [name for name in self.options.definitions if name not in valid]:
            known = ", ".join(valid) or "none"
            raise DemoError("definition_unknown", f"{', '.join(unknown)}: not among the valid ones, which are {known}")
        if not self.options.definitions and len(valid) < len(found):
            raise DemoError("definition_invalid", "mend the definitions above, or name valid ones with --definition")
        names = dict.fromkeys(self.options.definitions or valid)
        return [valid[name] for name in names]

    # -- the run

    async def _run_in(self, folder: Path, definitions: Sequence[Definition]) -> People:
        self._screen.starting(folder)
        async with engine(
            [*PROGRAM, "dev", *engine_options(self.options, folder, self._stamp)], folder, self._clock
        ) as process:
            self._engine = process.running
            self._screen.engine(process.running)
            connection = NatsConnection(process.running["nats"], self._clock, name="ceremony-demo")
            await connection.start()
            try:
                async with AsyncPlanningCeremonyClient(process.running["grpc"]) as client:
                    return await self._play(client, connection, process, definitions)
            finally:
                await connection.stop()

    async def _play(
        self,
        client: AsyncPlanningCeremonyClient,
        connection: NatsConnection,
        process: EngineProcess,
        definitions: Sequence[Definition],
    ) -> People:
        people = People(client, self._clock, {one.name: one for one in definitions}, self._live)

        def notice(seen: Seen) -> None:
            self._tally.add(seen)
            if seen.correlation_id.startswith(self._stamp):
                people.notice(seen)

        reader = StreamReader(connection, self._clock, notice)
        spawn = self._clock.spawn
        reading = spawn(reader.run(), name="stream")
        started = self._clock.monotonic()
        planned = plan(self.options.count, definitions, f"{self._stamp}-")
        starting = spawn(self._start_all(client, planned), name="starts")
        tasks = [reading, starting, spawn(self._show(), name="screen"), *people.tasks()]
        try:
            async with self._clock.timeout(self.options.timeout):
                gone = await self._until_ended(starting, [reading, process.ended])
                self._seconds = self._clock.monotonic() - started
                if gone:
                    self._complaints += await self._epitaph(gone, process)
                else:
                    await self._settled(reader, reading)
        except TimeoutError:
            self._seconds = self._clock.monotonic() - started
            self._complaints.append(f"timeout: not all ended within {self.options.timeout:g} s (--timeout)")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._screen.progress(self._progress())
        await self._name_missing(None if process.ended.done() else client)
        return people

    async def _start_all(self, client: AsyncPlanningCeremonyClient, planned: Sequence[PlannedStart]) -> None:
        left = iter(planned)

        async def some() -> None:
            for start in left:
                await self._start(client, start)

        starters = [self._clock.spawn(some(), name=f"starter-{n}") for n in range(self.options.concurrency)]
        try:
            await asyncio.gather(*starters)
        finally:
            for starter in starters:
                starter.cancel()

    async def _start(self, client: AsyncPlanningCeremonyClient, start: PlannedStart) -> None:
        try:
            await client.start(
                start.definition,
                ceremony_id=start.ceremony_id,
                story_id=start.story_id,
                requested_by="ceremony demo",
                inputs=start.inputs,
            )
        except PlanningCeremonyError as error:
            self._refused[start.instance_id] = error.message
        else:
            self._accepted.append(start)

    async def _until_ended(
        self, starting: asyncio.Task[None], vital: Sequence[asyncio.Task[Any]]
    ) -> list[asyncio.Task[Any]]:
        """Return when every accepted start has ended, or earlier with the vital tasks that have ended."""
        while not (starting.done() and not any(True for _ in self._live())):
            if gone := [task for task in vital if task.done()]:
                return gone
            await self._clock.sleep(LOOK_SECONDS)
        return []

    async def _epitaph(self, gone: Sequence[asyncio.Task[Any]], process: EngineProcess) -> list[str]:
        """Name the part that ended too early, with the last words of the engine's log.

        An engine that ends stops its NATS first, so the stream can be seen to end before the engine.
        """
        names = [task.get_name() for task in gone]
        words: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(LAST_WORDS_SECONDS):
                await asyncio.wait({process.ended})
            names = ["engine"]
            words = [f"the engine's last words: {last_words(process.log).splitlines()[-1]}"]
        return [f"the {' and '.join(names)} ended too early", *words]

    async def _settled(self, reader: StreamReader, reading: asyncio.Task[None]) -> None:
        """Read on for a moment after the last end: a second end of a ceremony would be seen."""
        for _ in range(2):
            if reading.done():
                return
            await self._clock.sleep(SETTLE_SECONDS)
            await reader.caught_up()

    async def _show(self) -> None:
        while True:
            self._screen.progress(self._progress())
            await self._clock.sleep(LOOK_SECONDS)

    def _live(self) -> list[str]:
        return [start.instance_id for start in self._accepted if start.instance_id not in self._tally.ended]

    def _progress(self) -> DemoProgress:
        ended = len(self._tally.ended)
        completed = self._tally.ended_as("completed")
        return DemoProgress(
            count=self.options.count,
            accepted=len(self._accepted),
            refused=len(self._refused),
            waiting=len(self._tally.waiting),
            completed=completed,
            ended_otherwise=ended - completed,
            events=self._tally.total,
        )

    # -- after

    async def _name_missing(self, client: AsyncPlanningCeremonyClient | None) -> None:
        """Ask for the state of each ceremony without an end. `client`: None if the engine has ended."""
        definition = {start.instance_id: start.definition for start in self._accepted}
        for number, instance_id in enumerate(self._live()):
            status, waiting_for = "not asked", []
            if client is not None and number < NAMED_MISSING:
                with contextlib.suppress(PlanningCeremonyError):
                    found = await client.get(instance_id)
                    status = "UNKNOWN" if found is None else found.status
                    waiting_for = [] if found is None else list(found.waiting_for)
            self._missing.append(Missing(instance_id, definition[instance_id], status, waiting_for))

    def _report(self, folder: Path, people: People) -> DemoReport:
        report = DemoReport(
            count=self.options.count,
            accepted=self._accepted,
            refused=self._refused,
            tally=self._tally,
            missing=self._missing,
            seconds=self._seconds,
            log=str(self._engine.get("log", "")),
            folder=str(folder),
            kept=self.options.folder is not None,
            decisions=people.decisions,
            triggers=people.triggers,
            complaints=[*self._complaints, *people.refusals],
        )
        return report if report.ok or report.kept else replace(report, kept=True)
