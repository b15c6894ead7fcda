"""The verb `start`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ceremony.cli.connection import ServerOption, call
from ceremony.cli.options import login, named_values
from ceremony.cli.output import Format, OutputOption, emit_data, say

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

# Part of the answer to a repeated start whose ceremony has ended.
ALREADY = " is there already: "


def start(
    definition: Annotated[str, typer.Argument(metavar="DEFINITION", help="Name of the definition.")],
    ceremony_id: Annotated[str, typer.Option(help="Id of your choice. Together with the story it is the instance id.")],
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
        typer.Option("--step", metavar="STEP", help="Start only these steps automatically; may be repeated."),
    ] = None,
    correlation_id: Annotated[str | None, typer.Option(help="Default: the instance id.")] = None,
    requested_by: Annotated[str | None, typer.Option(help="Default: your login name.", show_default=False)] = None,
    wait: Annotated[  # noqa: FBT002 - typer makes flags of them
        bool, typer.Option("--wait", help="Follow the ceremony to its end; exit 0 only if it completed.")
    ] = False,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Start a ceremony. Repeating the same start is safe: nothing starts twice."""
    given = {**_from_file(inputs_file), **named_values(inputs or ())}

    async def work(client: AsyncPlanningCeremonyClient) -> pb.StartPlanningCeremonyResponse:
        return await client.start_response(
            definition,
            ceremony_id=ceremony_id,
            story_id=story_id,
            requested_by=requested_by or login(),
            inputs=given,
            step_ids=steps or (),
            correlation_id=correlation_id,
        )

    answer = call(server, work)
    instance_id = answer.instance_id
    if wait:
        from ceremony.cli.watch import follow

        follow(instance_id, server, output)
    elif output is Format.TABLE:
        say(answer.message if ALREADY in answer.message else f"started {instance_id}")
        if sys.stdout.isatty():
            say(f"  follow it:  ceremony watch {instance_id}")
    else:
        message = {"message": answer.message} if answer.message else {}
        emit_data({"instance_id": instance_id, "status": answer.status, **message}, output)


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text())
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--inputs-file") from None
    except (ValueError, RecursionError):
        raise typer.BadParameter(f"{path} is not JSON in UTF-8", param_hint="--inputs-file") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{path} must hold a JSON object, name to value", param_hint="--inputs-file")
    return value
