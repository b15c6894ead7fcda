"""The verb `definitions`."""

from __future__ import annotations

from ceremony.cli import views
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import console
from ceremony.cli.output import Format, OutputOption, emit_data


def definitions(server: ServerOption = None, output: OutputOption = Format.TABLE) -> None:
    """List the definitions that the engine sees now, with the problems of invalid ones."""
    found = call(server, lambda client: client.definitions())
    if output is Format.TABLE:
        console().print(views.definitions_view(found))
    else:
        emit_data([views.definition_data(one) for one in found], output)
