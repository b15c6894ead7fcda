"""One operation on many items: a question first, progress meanwhile, then a summary with each error."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bridge.clock import HostClock
from ceremony.cli.connection import call
from ceremony.cli.display import console
from ceremony.cli.errors import CommandFailed, refused
from ceremony.cli.output import Format, emit_data, say

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient

# Calls in flight.
LANES = 16


@dataclass(frozen=True, slots=True)
class BulkItem:
    """One call, and the name under which people see it."""

    name: str
    work: Callable[[AsyncPlanningCeremonyClient], Awaitable[Any]]


@dataclass(slots=True)
class BulkResult:
    """The outcome of all calls."""

    done: list[str] = field(default_factory=list)
    failed: list[tuple[str, CommandFailed]] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        return {
            "total": len(self.done) + len(self.failed),
            "done": self.done,
            "failed": [{"item": name, "code": why.code, "message": why.message} for name, why in self.failed],
        }


def confirmed(verb: str, what: str, count: int, *, yes: bool) -> None:
    """Ask the user to confirm. Raises BadParameter without a terminal, Abort when the answer is no."""
    if yes or not count:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{verb} {count} {what}? Without a terminal, confirm with --yes", param_hint="--yes")
    typer.confirm(f"{verb} {count} {what}?", abort=True, err=True)


def run(server: str | None, verb: str, items: Sequence[BulkItem], output: Format) -> None:
    """Make all calls, at most 16 at a time, whichever of them fail. Raises CommandFailed if any failed."""
    outcome = call(server, lambda client: _all(client, verb, items))
    for name, why in outcome.failed:
        say(f"{name}: {why}", err=True)
    if output is Format.TABLE:
        say(summary(verb, outcome))
    else:
        emit_data(outcome.data(), output)
    if outcome.failed:
        raise CommandFailed


def summary(verb: str, outcome: BulkResult) -> str:
    """One line: the number of calls that succeeded, and the failures by code."""
    codes = Counter(why.code for _, why in outcome.failed)
    wrong = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    total = len(outcome.done) + len(outcome.failed)
    return f"{verb}: {len(outcome.done)} of {total} done" + (f"; refused or failed: {wrong}" if wrong else "")


async def _all(client: AsyncPlanningCeremonyClient, verb: str, items: Sequence[BulkItem]) -> BulkResult:
    outcome = BulkResult()
    with _progress() as progress:
        bar = progress.add_task(verb, total=len(items))
        waiting = iter(items)
        clock = HostClock()
        lanes = [
            clock.spawn(_lane(client, waiting, outcome, lambda: progress.advance(bar)), name=f"{verb} {number}")
            for number in range(LANES)
        ]
        await asyncio.gather(*lanes)
    return outcome


async def _lane(
    client: AsyncPlanningCeremonyClient, items: Iterator[BulkItem], outcome: BulkResult, tick: Callable[[], None]
) -> None:
    from fleet.planning_ceremony.client import PlanningCeremonyError

    for item in items:
        try:
            await item.work(client)
            outcome.done.append(item.name)
        except PlanningCeremonyError as error:
            outcome.failed.append((item.name, refused(error.status.name, error.message)))
        except CommandFailed as error:
            outcome.failed.append((item.name, error))
        tick()


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty())
