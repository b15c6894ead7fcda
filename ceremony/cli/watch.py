"""Follows a ceremony to its end: a live table on a terminal, plain lines or JSON lines elsewhere."""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from rich.live import Live

from bridge.clock import HostClock
from ceremony.cli import views
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import console, local_time
from ceremony.cli.errors import CommandFailed
from ceremony.cli.options import InstanceArgument
from ceremony.cli.output import Format, OutputOption, emit_data, emit_line, say

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

    Show = Callable[[pb.PlanningCeremonyInstance], None]

# Attempts to reopen a broken stream, a second apart. A worker restarts in less time.
PATIENCE = 15
# Between looks at the reader of stdout.
READER_SECONDS = 0.5

Result = TypeVar("Result")


def watch(
    instance_id: InstanceArgument,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Follow a ceremony to its end. Exit 0 if it completed, 1 if it ended otherwise.

    With -o json it prints one line for each change.
    """
    follow(instance_id, server, output)


def follow(instance_id: str, server: str | None, output: Format) -> None:
    """Show each version of the ceremony until its end. Raises CommandFailed if it did not complete."""
    if output is Format.JSON:
        last = _each(instance_id, server, lambda found: emit_line(views.ceremony_data(found)))
    elif output is Format.YAML:
        last = _each(instance_id, server, _document)
    elif sys.stdout.isatty():
        last = _live(instance_id, server)
    else:
        lines = ChangeLines()
        last = _each(instance_id, server, lines.show)
    if last.status != "COMPLETED":
        code = last.error_code or last.status.lower()
        raise CommandFailed(code, f"{instance_id} ended {last.status}: {last.error_message or last.current_state}")


def _document(found: pb.PlanningCeremonyInstance) -> None:
    say("---")
    emit_data(views.ceremony_data(found), Format.YAML)
    sys.stdout.flush()


def _live(instance_id: str, server: str | None) -> pb.PlanningCeremonyInstance:
    with Live(console=console(), auto_refresh=False, vertical_overflow="visible") as live:
        return _each(instance_id, server, lambda found: live.update(views.ceremony_view(found), refresh=True))


def _each(instance_id: str, server: str | None, show: Show) -> pb.PlanningCeremonyInstance:
    async def work(client: AsyncPlanningCeremonyClient) -> pb.PlanningCeremonyInstance:
        last = None
        async for found in forms(client, instance_id):
            show(found)
            last = found
        if last is None:
            raise CommandFailed("no_answer", f"the engine sent no state of {instance_id}")
        return last

    return call(server, lambda client: while_read(work(client)))


async def while_read(work: Coroutine[Any, Any, Result]) -> Result:
    """Do `work` until its end. Raises BrokenPipeError as soon as the reader of stdout has gone, `| head` for one."""
    clock = HostClock()
    working: asyncio.Task[Result] = clock.spawn(work, name="watch")
    gone = clock.spawn(_reader_gone(), name="reader")
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise BrokenPipeError
        return await working
    finally:
        working.cancel()
        gone.cancel()


async def _reader_gone() -> None:
    """Return when nobody can read stdout any more. Without this, only the next line would find out."""
    poll = select.poll()
    with suppress(OSError):  # stdout can be no file of the system, in tests for one
        poll.register(sys.stdout.fileno(), 0)
    while not any(event & select.POLLERR for _, event in poll.poll(0)):
        await HostClock().sleep(READER_SECONDS)


async def forms(client: AsyncPlanningCeremonyClient, instance_id: str) -> AsyncIterator[pb.PlanningCeremonyInstance]:
    """Yield each version once, across restarts of the engine. Raises PlanningCeremonyError."""
    from fleet.planning_ceremony.client import PlanningCeremonyError

    version, broken = -1, 0
    while True:
        try:
            async for found in client.watch(instance_id):
                broken = 0
                if found.version > version:
                    version = found.version
                    yield found
            return
        except PlanningCeremonyError as error:
            broken += 1
            # Before the first version the engine is not there; afterwards it restarts, and is worth waiting for.
            if error.status.name != "UNAVAILABLE" or version < 0 or broken > PATIENCE:
                raise
            await HostClock().sleep(1)


class ChangeLines:
    """Prints one line for each change since the version before."""

    def __init__(self) -> None:
        from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

        self._before = pb.PlanningCeremonyInstance()

    def show(self, found: pb.PlanningCeremonyInstance) -> None:
        for line in self.changes(found):
            say(f"{local_time(found.updated_at)}  {line}")
        sys.stdout.flush()

    def changes(self, found: pb.PlanningCeremonyInstance) -> Iterator[str]:
        """Yield the changes: steps first, because their ends move the ceremony."""
        before, self._before = self._before, found
        for step_id, status in sorted(found.step_status.items()):
            attempt = found.step_attempts.get(step_id, 0)
            seen = (before.step_status.get(step_id, "PENDING"), before.step_attempts.get(step_id, 0))
            if (status, attempt) != seen:
                error = found.step_errors.get(step_id, "")
                yield f"step {step_id} {status}, attempt {attempt}" + (f": {error}" if error else "")
        if (before.current_state, before.status) != (found.current_state, found.status):
            yield f"state {found.current_state}, {found.status}"
        if found.open_gates and list(before.open_gates) != list(found.open_gates):
            yield from (f"waiting: {hint}" for hint in views.gate_hints(found))
