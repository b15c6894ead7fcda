"""What an operator looks at: `deadletters` and `definitions`."""

from __future__ import annotations

from typing import Annotated

import typer
from fleet.planning_ceremony.v1.client import PlanningCeremonyClient

from bridge.cli import views
from bridge.cli.connection import ServerOption, call
from bridge.cli.output import Format, OutputOption, console, emit_data, say

deadletters = typer.Typer(help="What could not be processed and was set aside.", no_args_is_help=True)


@deadletters.command("list")
def list_dead_letters(
    topic: Annotated[str | None, typer.Option(help="Only from this topic or NATS stream.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    offset: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List dead letters, newest first."""
    page = call(server, lambda client: client.dead_letters(topic=topic, limit=limit, offset=offset))
    if output is not Format.TABLE:
        letters = [views.dead_letter_data(letter) for letter in page.dead_letters]
        emit_data({"dead_letters": letters, "total_count": page.total_count}, output)
        return
    if page.dead_letters:
        console().print(views.dead_letters_view(page.dead_letters))
    say(f"{len(page.dead_letters)} of {page.total_count} dead letters", err=True)


def definitions(server: ServerOption = None, output: OutputOption = Format.TABLE) -> None:
    """List the definitions that the engine sees now, the invalid ones with their problems."""
    found = call(server, PlanningCeremonyClient.definitions)
    if output is Format.TABLE:
        console().print(views.definitions_view(found))
    else:
        emit_data([views.definition_data(one) for one in found], output)
