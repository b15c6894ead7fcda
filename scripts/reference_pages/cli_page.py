"""The page of the command line: the help of every verb."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from ceremony.cli.verbs import VERBS, command, load
from scripts.reference_pages.markdown import fenced, page

WIDTH = 110


def cli_page() -> str:
    introduction = (
        "`ceremony --help` and `ceremony VERB --help` print the same. Exit codes: 0 ok, 1 refused or failed, "
        "2 wrong usage, 3 the engine is unavailable, 4 not found. `-o json` and `-o yaml` answer programs."
    )
    return page("Command line", introduction, *_sections())


def _sections() -> Iterator[str]:
    root = typer.Context(command(), info_name="ceremony", terminal_width=WIDTH, help_option_names=["-h", "--help"])
    panel = ""
    for verb in VERBS:
        if verb.panel != panel:
            panel = verb.panel
            yield f"## {panel}"
        yield f"### {verb.name}\n\n" + _help(load(verb.name), verb.name, root)


def _help(found: Any, name: str, parent: typer.Context) -> str:
    context = typer.Context(found, info_name=name, parent=parent, terminal_width=WIDTH)
    text = fenced(_plain(found.get_help(context)))
    if isinstance(found, TyperGroup):
        inner = (_help(found.get_command(context, one), one, context) for one in found.list_commands(context))
        text += "\n" + "\n".join(inner)
    return text


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())
