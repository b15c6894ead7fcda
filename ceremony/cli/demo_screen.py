"""The screen of the demo: live progress while it runs, then the tables and the verdict."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from bridge.clock import HostClock
from ceremony import loop
from ceremony.cli.display import console, table
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.output import Format, clean, emit_data
from ceremony.cli.validate import report
from ceremony.definition_files import Checked
from ceremony.demo.report import ENDS, DemoReport
from ceremony.demo.run import Demo, DemoOptions, DemoProgress

# Between lines of progress without a terminal.
LINE_SECONDS = 2.0
RATE_SECONDS = 1.0
# Lines shown of a longer list of problems.
SHOWN = 20


def show(options: DemoOptions, output: Format) -> None:
    """Run the demo and print its report. Raises CommandFailed unless everything adds up."""
    # With -o json, stdout is for the one object, and people see the run on stderr.
    seen = console(sys.stdout if output is Format.TABLE else sys.stderr)
    found = loop.run(_run(options, seen))
    if output is Format.TABLE:
        print_report(found, seen)
    else:
        emit_data(found.data(), output)
    if not found.ok:
        raise CommandFailed("demo_failed", verdict(found))


async def _run(options: DemoOptions, seen: Console) -> DemoReport:
    """Run the demo in a task of its own: SIGTERM and Ctrl-C cancel it, and nothing is left running."""
    clock = HostClock()
    screen = LiveScreen(seen, clock)
    running = clock.spawn(Demo(options, clock, screen).run(), name="demo")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    try:
        found: DemoReport = await running
    except asyncio.CancelledError:
        screen.close()
        raise CommandFailed(
            "interrupted", "the demo was interrupted; nothing is left running", Exit.INTERRUPTED
        ) from None
    finally:
        screen.close()
    return found


class Rate(ProgressColumn):
    def render(self, task: Any) -> Text:
        return Text(f"{task.fields['rate']:>6,.0f} events/s", style="cyan")


class LiveScreen:
    """Bars on a terminal; elsewhere a line every two seconds."""

    def __init__(self, seen: Console, clock: HostClock) -> None:
        self._console = seen
        self._clock = clock
        self._bars: Progress | None = None
        self._begun = self._line_at = self._rate_at = self._engine_at = clock.monotonic()
        self._rate_events, self._rate = 0, 0.0
        self._last = ""
        self._all_ended = False

    def checked(self, found: Sequence[Checked]) -> None:
        invalid = [one for one in found if one.definition is None]
        for one in invalid:
            report(one)
        names = ", ".join(one.definition.name for one in found if one.definition is not None)
        if not invalid:
            self._say(f"definitions  {len(found)} valid: {names}")

    def starting(self, folder: Path) -> None:
        self._say(f"starting     log, nats-server, simulated Ray executor and engine in {folder}")

    def engine(self, running: Mapping[str, Any]) -> None:
        self._rate_at = self._engine_at = self._clock.monotonic()
        self._say(f"engine       {running['log']}, gRPC {running['grpc']}, {running['nats']}")

    def progress(self, now: DemoProgress) -> None:
        self._measure(now)
        if self._console.is_terminal:
            self._draw(now)
        elif self._clock.monotonic() - self._line_at >= LINE_SECONDS or now.ended == now.count:
            self._line_at = self._clock.monotonic()
            line = f"{now.accepted} started, {words(now)}, {now.events} events"
            if line != self._last:
                self._say(f"{self._line_at - self._begun:5.1f} s      {line}")
            self._last = line

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _say(self, line: str) -> None:
        self._console.print(Text(clean(line)), soft_wrap=True)

    def _measure(self, now: DemoProgress) -> None:
        passed = self._clock.monotonic() - self._rate_at
        if self._all_ended:
            return
        if now.ended == now.count:
            # The rate that stays on the screen is that of the whole run.
            self._all_ended = True
            self._rate = now.events / (self._clock.monotonic() - self._engine_at)
        elif passed >= RATE_SECONDS:
            self._rate = (now.events - self._rate_events) / passed
            self._rate_at, self._rate_events = self._clock.monotonic(), now.events

    def _draw(self, now: DemoProgress) -> None:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[words]}"),
                Rate(),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._bars.start()
            for name in ("started", "ended"):
                self._bars.add_task(name, total=now.count, words="", rate=0.0)
        started, ended = self._bars.task_ids
        self._bars.update(started, completed=now.accepted, rate=self._rate)
        self._bars.update(ended, completed=now.ended, rate=self._rate, words=words(now))


def words(now: DemoProgress) -> str:
    parts = {
        "running": now.running,
        "waiting": now.waiting,
        "completed": now.completed,
        "ended otherwise": now.ended_otherwise,
        "refused": now.refused,
    }
    always = ("running", "waiting", "completed")
    return ", ".join(f"{number} {name}" for name, number in parts.items() if number or name in always)


def print_report(found: DemoReport, seen: Console) -> None:
    """Print the tables, then each problem, then the verdict."""
    seen.print()
    seen.print(definitions_table(found))
    seen.print()
    seen.print(events_table(found))
    seen.print()
    for line in wrong(found):
        seen.print(Text(clean(line), style="red"), soft_wrap=True)
    if found.ok:
        seen.print(Text(verdict(found), style="bold green"), soft_wrap=True)
    if found.kept:
        seen.print(Text(f"kept in {found.folder} (the engine's log: dev.log)"), soft_wrap=True)


def definitions_table(found: DemoReport) -> Any:
    rows = [
        (
            name,
            str(one.started),
            *(str(one.ends[kind] or "") for kind in ENDS),
            str(one.steps),
            milliseconds(one.p50_ms),
            milliseconds(one.p99_ms),
        )
        for name, one in found.definitions.items()
    ]
    columns = ("definition", "started", "completed", "failed", "cancelled", "timed out", "steps", "p50 ms", "p99 ms")
    return table(columns, rows, right=columns[1:])


def milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def events_table(found: DemoReport) -> Any:
    rows = [(subject, f"{number:,}") for subject, number in sorted(found.tally.events.items())]
    return table(
        ("event, as a consumer of CEREMONY saw it", "count"), [*rows, ("", f"{found.tally.total:,}")], right=("count",)
    )


def wrong(found: DemoReport) -> list[str]:
    """One line for each problem."""
    lines = list(found.complaints)
    lines += [f"refused {instance_id}: {reason}" for instance_id, reason in found.refused.items()]
    lines += [
        f"missing {one.instance_id} ({one.definition}, {one.status}): "
        f"{'; '.join(one.waiting_for) or 'waits for nothing'}"
        for one in found.missing
    ]
    lines += [f"ended twice {instance_id}: {', '.join(kinds)}" for instance_id, kinds in found.ended_twice.items()]
    lines += [f"message id twice {message_id}" for message_id in found.tally.repeated]
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"… and {len(lines) - SHOWN} more (-o json has all)"]


def verdict(found: DemoReport) -> str:
    ended = len(found.tally.ended)
    if found.ok:
        rate = found.steps / found.seconds if found.seconds else 0
        return (
            f"all {found.count} accounted for: {found.steps:,} steps and {found.tally.total:,} events "
            f"in {found.seconds:.1f} s ({rate:,.0f} steps/s), {found.decisions} decisions by people"
        )
    parts = (
        (len(found.accepted), "accepted"),
        (ended, "ended"),
        (len(found.missing), "missing"),
        (len(found.refused), "refused"),
        (len(found.ended_twice), "ended twice"),
        (len(found.tally.repeated), "message ids twice"),
    )
    return f"of {found.count}: " + ", ".join(f"{number} {what}" for number, what in parts)
