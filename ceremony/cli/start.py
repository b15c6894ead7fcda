"""The verbs that start and read ceremonies: `start`, `get`, `list`."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.client import PlanningCeremonyClient

from ceremony.cli import views
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.output import Format, OutputOption, console, emit_data, say
from ceremony.cli.watch import follow

LARGEST_PAGE = 1000
"""The engine gives no more at once."""

InstanceArgument = Annotated[str, typer.Argument(metavar="ID", help="Instance id, CEREMONY:STORY.")]


def login() -> str:
    """The name of who sits here, for `--actor` and `--requested-by`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "ceremony-cli"


def start(
    definition: Annotated[str, typer.Argument(help="Name of the definition.")],
    ceremony_id: Annotated[str, typer.Option(help="Yours to choose: with the story it makes the instance id.")],
    story_id: Annotated[str, typer.Option(help="The story it is about.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--input",
            metavar="NAME=VALUE",
            help="An input; may be repeated. A value that is a JSON object or array becomes one.",
        ),
    ] = None,
    inputs_file: Annotated[
        Path | None,
        typer.Option(help="A JSON object of inputs, `-` for stdin; --input wins over it.", allow_dash=True),
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option("--step", metavar="STEP", help="Only these steps run by themselves; may be repeated."),
    ] = None,
    correlation_id: Annotated[str | None, typer.Option(help="Default: the instance id.")] = None,
    requested_by: Annotated[str | None, typer.Option(help="Default: your login name.", show_default=False)] = None,
    wait: Annotated[  # noqa: FBT002 - typer makes flags of them
        bool, typer.Option("--wait", help="Follow it to its end; exit 0 only if it completed.")
    ] = False,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Start a ceremony. The same start again is answered alike and starts nothing twice."""
    given = {**_from_file(inputs_file), **_from_options(inputs or ())}

    async def work(client: PlanningCeremonyClient) -> str:
        return await client.start(
            definition,
            ceremony_id=ceremony_id,
            story_id=story_id,
            requested_by=requested_by or login(),
            inputs=given,
            step_ids=steps or (),
            correlation_id=correlation_id,
        )

    instance_id = call(server, work)
    if wait:
        follow(instance_id, server, output)
    elif output is Format.TABLE:
        say(f"started {instance_id}")
        if sys.stdout.isatty():
            say(f"  follow it:  ceremony watch {instance_id}")
    else:
        emit_data({"instance_id": instance_id, "status": "accepted"}, output)


def get(instance_id: InstanceArgument, server: ServerOption = None, output: OutputOption = Format.TABLE) -> None:
    """Show one ceremony: its state, what it waits for, and its steps."""

    async def work(client: PlanningCeremonyClient) -> pb.PlanningCeremonyInstance | None:
        return await client.get(instance_id)

    found = call(server, work)
    if found is None:
        raise unknown(instance_id)
    if output is Format.TABLE:
        console().print(views.ceremony_view(found))
    else:
        emit_data(views.ceremony_data(found), output)


def unknown(instance_id: str) -> CommandFailed:
    hint = "" if ":" in instance_id else "; an instance id is CEREMONY:STORY"
    return CommandFailed("unknown_instance", f"there is no ceremony {instance_id!r}{hint}", Exit.NOT_FOUND)


def list_(
    state: Annotated[str | None, typer.Option(help="Only in this state of their definition.")] = None,
    definition: Annotated[str | None, typer.Option(help="Only of this definition.")] = None,
    story: Annotated[str | None, typer.Option(help="Only about this story.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only with this status: RUNNING, WAITING_FOR_HUMAN, COMPLETED, FAILED, …")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the newest so many.")] = 0,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List ceremonies, newest first."""
    filters = {
        "state": state,
        "definition_name": definition,
        "story_id": story,
        "status": None if status is None else status.upper(),
    }

    async def work(client: PlanningCeremonyClient) -> tuple[Sequence[pb.PlanningCeremonyInstance], int]:
        return await pages(client, filters, limit, offset)

    found, total = call(server, work)
    if output is Format.TABLE:
        _print_list(found, total, offset)
    else:
        emit_data({"ceremonies": [views.ceremony_data(one) for one in found], "total_count": total}, output)


def _print_list(found: Sequence[pb.PlanningCeremonyInstance], total: int, offset: int) -> None:
    if found:
        console().print(views.list_view(found))
    if len(found) < total:
        shown = f"{offset + 1} to {offset + len(found)}" if found else "none"
        say(f"{shown} of {total}; more with --limit and --offset", err=True)
    elif not found:
        say("no ceremonies", err=True)


async def pages(
    client: PlanningCeremonyClient, filters: Mapping[str, Any], limit: int, offset: int
) -> tuple[list[pb.PlanningCeremonyInstance], int]:
    """Pages one after the other: one ends early where its ceremonies are large."""
    found: list[pb.PlanningCeremonyInstance] = []
    while True:
        page = await client.list(
            **filters, limit=min(limit - len(found), LARGEST_PAGE), offset=min(offset + len(found), 2**31 - 1)
        )
        found += page.ceremonies
        if not page.ceremonies or len(found) >= limit or offset + len(found) >= page.total_count:
            return found, page.total_count


def _from_options(options: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option!r} is no NAME=VALUE", param_hint="--input")
        if name in given:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--input")
        given[name] = value
    return given


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text())
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--inputs-file") from None
    except (ValueError, RecursionError):
        raise typer.BadParameter(f"{path} is no JSON in UTF-8", param_hint="--inputs-file") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{path} must hold a JSON object, name to value", param_hint="--inputs-file")
    return value
