"""The verb `history`: the events of one ceremony, as a table, a timeline or data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.clock import HostClock
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import console
from ceremony.cli.options import InstanceArgument
from ceremony.cli.output import Format, OutputOption, emit_data, say

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

# Events of one page of a whole history.
PAGE_EVENTS = 500
BETWEEN_LINES_SECONDS = 2.0


@dataclass(slots=True)
class Gathered:
    """The events of all pages so far, and the answers' word on what is missing."""

    events: list[pb.HistoryEvent] = field(default_factory=list)
    complete: bool = False
    message: str = ""
    missing: list[str] = field(default_factory=list)
    """A line for each place where events may be missing."""
    partition: int = 0
    offset: int = 0

    def add(self, page: pb.GetHistoryResponse) -> None:
        if page.complete or not page.next_page_token or page.events or not self.message:
            self.message = page.message
        self.events += page.events
        self.missing += [f"before {one.at}: {one.missing_before}" for one in page.events if one.missing_before]
        self.complete = page.complete
        self.partition, self.offset = page.stopped_at.partition, page.stopped_at.offset

    @property
    def note(self) -> str:
        """The words on what is missing, for people; empty where nothing is."""
        if self.complete:
            return ""
        return f"events may be missing {'; '.join(self.missing)}" if self.missing else self.message


def history(
    instance_id: InstanceArgument,
    limit: Annotated[
        int | None,
        typer.Option("-n", "--limit", min=1, max=1000, help="Only so many of the newest events.", show_default=False),
    ] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Draw a timeline instead of a table.")] = False,  # noqa: FBT002 - typer makes flags of them
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show every event of a ceremony, oldest first, with actor and reason.

    The log keeps events for 30 days. Older ones come from Valkey, where it is set, as long as the ceremony's row is
    there; a line shows where. Where events are missing, the answer says so.
    """
    from ceremony.cli import event_views

    found = call(server, lambda client: _gathered(client, instance_id, limit))
    if output is not Format.TABLE:
        emit_data(history_data(found), output)
        return
    screen = console()
    if timeline:
        note = "" if found.missing else found.note  # each event tells what is missing before it
        screen.print(event_views.timeline(instance_id, found.events, note, plain=screen.options.ascii_only))
    elif found.events:
        screen.print(event_views.events_table(found.events))
    if not found.complete:
        where = f"partition {found.partition}, offset {found.offset}"
        say(f"incomplete: {found.note} (stopped at {where})", err=True)


async def _gathered(client: AsyncPlanningCeremonyClient, instance_id: str, limit: int | None) -> Gathered:
    found = Gathered()
    if limit is not None:
        found.add(await client.history(instance_id, limit=limit))
        return found
    clock = HostClock()
    printed = clock.monotonic()
    async for page in client.history_pages(instance_id, limit=PAGE_EVENTS):
        found.add(page)
        if page.next_page_token and clock.monotonic() - printed >= BETWEEN_LINES_SECONDS:
            printed = clock.monotonic()
            read, total = page.stopped_at.offset - page.first_offset, page.end_offset - page.first_offset
            say(f"{read} of {total} records read, {len(found.events)} events", err=True)
    return found


def history_data(found: Gathered) -> dict[str, Any]:
    """The whole history, with payloads as values."""
    return {
        "events": [event_data(event) for event in found.events],
        "complete": found.complete,
        "stopped_at": {"partition": found.partition, "offset": found.offset},
        "message": found.message,
        "missing": found.missing,
    }


def event_data(event: pb.HistoryEvent) -> dict[str, Any]:
    return {
        "subject": event.subject,
        "at": event.at,
        "effect_id": event.effect_id,
        "correlation_id": event.correlation_id,
        "payload": json.loads(event.payload or "{}"),
        "metadata": json.loads(event.metadata or "{}"),
        "command": {"partition": event.command.partition, "offset": event.command.offset},
        "source": event.source,
        "missing_before": event.missing_before,
    }
