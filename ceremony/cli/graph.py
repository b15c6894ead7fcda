"""The verb `graph`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ceremony.cli.errors import CommandFailed


class GraphFormat(StrEnum):
    TEXT = "text"
    MERMAID = "mermaid"
    DOT = "dot"


def graph(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A definition.")],
    drawn_as: Annotated[GraphFormat, typer.Option("--format", help="Format of the drawing.")] = GraphFormat.TEXT,
) -> None:
    """Draw a definition: for a terminal, as Mermaid, or as DOT for Graphviz."""
    from ceremony.cli.validate import report
    from ceremony.definition_files import check_file, missing
    from steps.registry import all_kinds
    from tables.definitions import graph as drawing

    one = check_file(path, all_kinds()) if path.is_file() else missing(path)
    if one.definition is None:
        report(one)
        raise CommandFailed("definition_invalid", f"{path} is not a valid definition")
    draw = {
        GraphFormat.TEXT: drawing.terminal,
        GraphFormat.MERMAID: drawing.mermaid,
        GraphFormat.DOT: drawing.dot,
    }[drawn_as]
    typer.echo(draw(one.definition), nl=False)
