"""The verb `init`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.output import say

FIRST_NAME = "first_ceremony"


def init(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="Name of the ceremony. That of an example, as backlog_review, copies it."
        ),
    ] = FIRST_NAME,
) -> None:
    """Write a first ceremony, and the schema by which editors check and complete it.

    Both go where `ceremony dev` looks for them: into CEREMONIES_DIR, else into specs/.
    """
    from bridge.definitions import NAME
    from ceremony.packaged import SCHEMA_NAME, USUAL_FOLDER, schema_text

    if NAME.fullmatch(name) is None:
        raise CommandFailed("name_invalid", f"{name!r}: a name has letters A-Z a-z, digits and `_` only", Exit.USAGE)
    folder = Path(os.environ.get("CEREMONIES_DIR") or USUAL_FOLDER)
    schema = (folder.parent if folder == USUAL_FOLDER else folder) / SCHEMA_NAME
    file = folder / f"{name}.yaml"
    if file.exists():
        raise CommandFailed("file_exists", f"{file} is there already; choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        schema.write_text(schema_text(), encoding="utf-8")
        file.write_text(_definition(name, os.path.relpath(schema, folder)), encoding="utf-8")
    except OSError as error:
        raise CommandFailed("file_unwritable", f"{error.filename}: {error.strerror}") from None
    say(f"{file} and {schema} are written. Next:")
    say(f"  ceremony validate {file}")
    say("  ceremony dev")
    say(f"  ceremony start {name} --ceremony-id c1 --story-id s1 --input title='A first story'")


def _definition(name: str, schema: str) -> str:
    """The text of the example of this name, else of the template. Its first line names the schema for editors."""
    from ceremony.packaged import examples_folder, template_text

    example = examples_folder() / f"{name}.yaml"
    text = example.read_text("utf-8") if example.is_file() else template_text().replace(FIRST_NAME, name)
    return f"# yaml-language-server: $schema={schema}\n{text}"
