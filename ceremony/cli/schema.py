"""The verb `schema`."""

from __future__ import annotations

import typer


def schema() -> None:
    """Print the JSON Schema of a ceremony definition, for editors and other tools."""
    from ceremony.packaged import schema_text

    typer.echo(schema_text(), nl=False)
