"""The verbs that need no engine: `validate` and `graph`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ceremony.cli.errors import CommandFailed
from ceremony.cli.output import Format, OutputOption, emit_data
from ceremony.cli.root import Root

FILES = "Definitions"


class GraphFormat(StrEnum):
    TEXT = "text"
    MERMAID = "mermaid"
    DOT = "dot"


def add_verbs(app: typer.Typer, root: Root) -> None:
    """Add the verbs; what a step may be is known by the program's root."""
    app.command(rich_help_panel=FILES)(validate_verb(root))
    app.command(rich_help_panel=FILES)(graph_verb(root))


def validate_verb(root: Root) -> Callable[..., None]:
    def validate(
        paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR...", help="Definitions, or folders of them.")],
        output: OutputOption = Format.TABLE,
    ) -> None:
        """Check definitions: exit 0 if all are valid, else 1 with every reason. Warnings do not fail."""
        from ceremony.cli.definition_check import check, counted, report  # noqa: PLC0415 - the loader takes longer than `get`

        found = check(paths, root.kinds())
        invalid = sum(one.definition is None for one in found)
        if output is not Format.TABLE:
            emit_data({"valid": not invalid, "files": [one.data() for one in found]}, output)
            if invalid:
                raise CommandFailed
            return
        for one in found:
            report(one)
        if invalid:
            raise CommandFailed("definition_invalid", f"{invalid} of {counted(len(found))} invalid")

    return validate


def graph_verb(root: Root) -> Callable[..., None]:
    def graph(
        path: Annotated[Path, typer.Argument(metavar="FILE", help="A definition.")],
        drawn_as: Annotated[GraphFormat, typer.Option("--format", help="How it is drawn.")] = GraphFormat.TEXT,
    ) -> None:
        """Draw a definition: for a terminal, as Mermaid for a page, or as DOT for Graphviz."""
        from ceremony.cli.definition_check import check_file, missing, report  # noqa: PLC0415 - as above
        from tables.definitions import graph as drawing  # noqa: PLC0415 - as above

        one = check_file(path, root.kinds()) if path.is_file() else missing(path)
        if one.definition is None:
            report(one)
            raise CommandFailed("definition_invalid", f"{path} is no valid definition")
        draw = {
            GraphFormat.TEXT: drawing.terminal,
            GraphFormat.MERMAID: drawing.mermaid,
            GraphFormat.DOT: drawing.dot,
        }[drawn_as]
        typer.echo(draw(one.definition), nl=False)

    return graph
