"""The verb `history`: the events of one ceremony."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import STYLES, console, local, table
from ceremony.cli.options import InstanceArgument
from ceremony.cli.output import Format, OutputOption, clean, emit_data, say
from ceremony.cli.views import summary

if TYPE_CHECKING:
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

# Fields of a payload that the table leaves out, for every line would repeat them.
REPEATED_FIELDS = frozenset({"instance_id", "definition_name", "output"})


def history(
    instance_id: InstanceArgument,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=200, help="Number of newest events.")] = 200,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show the newest events of a ceremony, oldest first."""
    found = call(server, lambda client: client.history(instance_id, limit=limit))
    if output is not Format.TABLE:
        emit_data(history_data(found), output)
        return
    if found.events:
        rows = [(local(event.at), event.subject, version(event), payload_line(event)) for event in found.events]
        console().print(table(("at", "event", "version", "details"), rows, right=("version",)))
    if not found.complete:
        where = f"partition {found.stopped_at.partition}, offset {found.stopped_at.offset}"
        say(f"incomplete: {found.message} (stopped at {where})", err=True)


def history_data(found: pb.GetHistoryResponse) -> dict[str, Any]:
    """The whole response, with payloads as values."""
    return {
        "events": [
            {
                "subject": event.subject,
                "at": event.at,
                "effect_id": event.effect_id,
                "correlation_id": event.correlation_id,
                "payload": json.loads(event.payload or "{}"),
                "metadata": json.loads(event.metadata or "{}"),
                "command": {"partition": event.command.partition, "offset": event.command.offset},
            }
            for event in found.events
        ],
        "complete": found.complete,
        "stopped_at": {"partition": found.stopped_at.partition, "offset": found.stopped_at.offset},
        "message": found.message,
    }


def version(event: pb.HistoryEvent) -> str:
    """The ceremony's version in an effect id, `<instance>/<version>/<ordinal>@<fold>`."""
    return event.effect_id.rpartition("/")[0].rpartition("/")[2]


def payload_line(event: pb.HistoryEvent) -> Text:
    """Payload and metadata of an event on one line."""
    payload = json.loads(event.payload or "{}")
    fields = payload | json.loads(event.metadata or "{}")
    parts = [
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in fields.items()
        if name not in REPEATED_FIELDS and value not in ("", None)
    ]
    style = STYLES.get(str(payload.get("status")), "")
    return Text(clean(summary(" ".join(parts))), style=style, no_wrap=True, overflow="ellipsis")
