"""Runs all parts of the benchmark one after the other, on one broker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import Progress

from tests.benchmarks import bare, bare_work, engines, intake, live, recovery, serial, throughput
from tests.benchmarks.bare_figures import BareRun, Kind, kinds
from tests.benchmarks.layouts import ONE, Layout
from tests.benchmarks.plan import Plan
from tests.benchmarks.processes import ROOT, BenchmarkFailed
from tests.benchmarks.site import Ground
from tests.benchmarks.sizes import CeremonyRecords
from tests.benchmarks.workloads import MERGES, PUBLISHES, STEPS, Workload
from tests.services import KafkaServer

BARE_SECONDS = 120
# Arguments: done, wanted.
Seen = Callable[[int, int], None]


@dataclass(slots=True)
class Found:
    """Measurements so far."""

    engine: dict[Layout, list[throughput.EngineRun]] = field(default_factory=dict)
    synced: list[throughput.EngineRun] = field(default_factory=list)
    bare: dict[Kind, list[BareRun]] = field(default_factory=dict)
    asked: list[throughput.EngineRun] = field(default_factory=list)
    """Runs of the first layout in which each step asks its agent."""
    asked_bare: dict[Kind, list[BareRun]] = field(default_factory=dict)
    serial: dict[str, serial.SerialRun] = field(default_factory=dict)
    recovery: recovery.RecoveryRun | None = None
    intake: list[intake.IntakeRun] = field(default_factory=list)
    live: list[live.LiveRun] = field(default_factory=list)
    others: dict[str, engines.Figures] = field(default_factory=dict)


class Bench:
    """One run of all chosen parts; `found` keeps the measurements even if a later part fails."""

    def __init__(self, plan: Plan, folder: Path, kafka: KafkaServer, screen: Progress, found: Found) -> None:
        self._plan = plan
        self._folder = folder
        self._kafka = kafka
        self._screen = screen
        self.found = found

    async def run(self) -> None:
        """Raises BenchmarkFailed."""
        parts = {
            "live": self._live,
            "throughput": self._throughput,
            "serial": self._serials,
            "recovery": self._recovery,
            "starts": self._starts,
        }
        for part in self._plan.parts:
            await parts[part]()
        for engine in self._plan.engines:
            await self._other(engine)

    async def _live(self) -> None:
        plan = self._plan
        kafka = live.LiveLog("Kafka", f"kafka://{self._kafka.bootstrap}", self._kafka.pid, plan.flush)
        logs = [(kafka, layout) for layout in plan.live_layouts]
        logs.append((live.LiveLog("embedded", f"sqlite://{self._folder / 'live.db'}"), ONE))
        if plan.live_synced:
            logs.append((kafka._replace(name="Kafka, NATS syncs each message", sync_always=True), plan.live_layouts[0]))
        for number, (log, layout) in enumerate(logs):
            await self._live_on(self._folder / f"live-{number}", log, layout)

    async def _live_on(self, folder: Path, log: live.LiveLog, layout: Layout) -> None:
        plan = self._plan

        async def measured(seen: Seen) -> list[live.LiveRun]:
            return await live.measure(folder, log, layout, plan.live, plan.live_seconds, plan.live_partitions, seen)

        self.found.live += await self._shown(f"live backlog reviews, {log.name}, {layout}", measured)

    async def _throughput(self) -> None:
        plan, found = self._plan, self.found
        for turn in range(plan.repetitions):
            for layout in plan.layouts:
                last = turn == plan.repetitions - 1 and layout == plan.layouts[-1]
                run = await self._engine(turn, layout, plan.ceremonies, profile=plan.profile if last else None)
                found.engine.setdefault(layout, []).append(run)
            records = found.engine[plan.layouts[0]][0].records
            for kind in kinds([len(layout.roles) for layout in plan.layouts]):
                found.bare.setdefault(kind, []).append(await self._bare(turn, kind, MERGES, plan.ceremonies, records))
        for turn in range(plan.repetitions):
            await self._asked(turn)
        synced = await self._engine(plan.repetitions, plan.layouts[0], plan.synced_ceremonies, sync_always=True)
        found.synced.append(synced)

    async def _asked(self, turn: int) -> None:
        """Measure steps that pass their topics and their agent, in the first layout, and the loops beside it."""
        layout, ceremonies, found = self._plan.layouts[0], self._plan.asked_ceremonies, self.found
        found.asked.append(await self._engine(turn, layout, ceremonies, workload=PUBLISHES))
        for kind in kinds([len(layout.roles)]):
            run = await self._bare(turn, kind, PUBLISHES, ceremonies, found.asked[0].records)
            found.asked_bare.setdefault(kind, []).append(run)

    async def _serials(self) -> None:
        kafka = f"kafka://{self._kafka.bootstrap}"
        await self._serial(serial.KAFKA, kafka, MERGES)
        await self._serial(serial.ASKED, kafka, PUBLISHES)
        await self._serial(serial.EMBEDDED, f"sqlite://{self._folder / 'log.db'}", MERGES)

    async def _starts(self) -> None:
        plan = self._plan
        for definition in plan.starts:
            for layout in plan.layouts[: plan.start_layouts]:
                await self._intake(definition, layout)

    async def _engine(
        self,
        turn: int,
        layout: Layout,
        ceremonies: int,
        *,
        workload: Workload = MERGES,
        sync_always: bool = False,
        profile: Path | None = None,
    ) -> throughput.EngineRun:
        name = f"engine-{workload.name}-{layout.name.replace('+', '-')}-{turn}"
        ground = self._ground(name, layout, sync_always=sync_always)
        label = f"engine, {layout}, {ceremonies:,} of {workload.name}"
        label += ", NATS syncs each message" if sync_always else ""

        async def measured(seen: Seen) -> throughput.EngineRun:
            return await throughput.measure(ground, ceremonies, seen, profile, workload)

        run: throughput.EngineRun = await self._shown(label, measured)
        return run

    def _ground(self, name: str, layout: Layout = ONE, *, sync_always: bool = False) -> Ground:
        plan = self._plan
        return Ground(self._kafka, self._folder / name, name, plan.partitions, plan.flush, sync_always, layout)

    async def _recovery(self) -> None:
        plan = self._plan

        async def measured(seen: Seen) -> recovery.RecoveryRun:
            return await recovery.measure(self._ground("recovery"), plan.rows, plan.repetitions, seen)

        self.found.recovery = await self._shown(f"recovery of {plan.rows:,} rows", measured)

    async def _intake(self, definition: str, layout: Layout) -> None:
        async def measured(seen: Seen) -> intake.IntakeRun:
            ground = self._ground(f"intake-{definition}-{layout.name.replace('+', '-')}", layout)
            return await intake.measure(ground, definition, self._plan.start_seconds, seen)

        self.found.intake.append(await self._shown(f"starts of {definition}, {layout}", measured))

    async def _bare(
        self, turn: int, kind: Kind, workload: Workload, ceremonies: int, records: CeremonyRecords
    ) -> BareRun:
        options = bare_work.Options(
            bootstrap=self._kafka.bootstrap,
            name=f"bare-{workload.name}-{turn}-{kind.processes}-{'batches' if kind.batches else 'sends'}",
            ceremonies=ceremonies,
            partitions=self._plan.partitions,
            batches=kind.batches,
            processes=kind.processes,
            records=records,
            topic_config={"flush.messages": "1"} if self._plan.flush else {},
        )

        async def measured(_seen: Seen) -> bare.Measured:
            return msgspec.json.decode(await asyncio.to_thread(_in_process, options), type=bare.Measured)

        done: bare.Measured = await self._shown(f"{kind}, {workload.name}", measured)
        steps = ceremonies * STEPS
        return BareRun(steps / done.seconds, 1e6 * done.cpu_seconds / steps)

    async def _serial(self, what: str, log_url: str, workload: Workload) -> None:
        name = what.replace(" ", "-").replace(",", "")

        async def measured(seen: Seen) -> serial.SerialRun:
            return await serial.measure(
                self._folder / f"serial-{name}",
                name,
                log_url,
                workload,
                self._plan.serial,
                self._plan.partitions,
                seen,
                flush=self._plan.flush,
            )

        self.found.serial[what] = await self._shown(f"one ceremony at a time, {what}", measured)

    async def _other(self, engine: engines.OtherEngine) -> None:
        async def measured(_seen: Seen) -> engines.Figures:
            return await asyncio.to_thread(engines.measure, engine)

        self.found.others[engine.name] = await self._shown(engine.name, measured)

    async def _shown(self, label: str, measured: Callable[[Seen], Awaitable[Any]]) -> Any:
        task = self._screen.add_task(label, total=None)

        def seen(done: int, wanted: int) -> None:
            self._screen.update(task, completed=done, total=wanted)

        result = await measured(seen)
        self._screen.update(task, completed=1, total=1)
        return result


def _in_process(options: bare_work.Options) -> bytes:
    """Run the bare loop in a process; return its answer. Raises BenchmarkFailed."""
    command = [sys.executable, "-m", "tests.benchmarks.bare"]
    given = msgspec.json.encode(options)
    done = subprocess.run(command, input=given, capture_output=True, cwd=ROOT, timeout=BARE_SECONDS, check=False)
    if done.returncode:
        raise BenchmarkFailed(f"the bare loop ended with {done.returncode}: {done.stderr[-500:].decode()}")
    return done.stdout
