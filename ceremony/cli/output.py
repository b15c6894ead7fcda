"""What the verbs print: tables for people, JSON and YAML for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import IO, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 1_000
"""Columns where nobody looks: in a pipe a line is a row, and nothing is cut."""

STYLES = {
    "COMPLETED": "green",
    "FAILED": "bold red",
    "TIMED_OUT": "bold red",
    "CANCELLED": "red",
    "WAITING_FOR_HUMAN": "bold yellow",
    "PAUSED": "magenta",
    "RUNNING": "cyan",
    "IN_PROGRESS": "cyan",
    "PENDING": "bright_black",
}


NARROWEST = 60
"""Columns. On a terminal with fewer, lines that wrap are easier to read than columns of one letter."""


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Format, typer.Option("-o", "--output", help="For people, or for programs.", show_default=True)]


def console(file: IO[str] | None = None) -> Console:
    """A console on stdout (or `file`): colours on a terminal unless NO_COLOR is set, plain wide lines elsewhere."""
    file = file or sys.stdout
    width = None if file.isatty() or "COLUMNS" in os.environ else WIDE
    if width is None and Console(file=file).width < NARROWEST:
        width = NARROWEST
    return Console(file=file, width=width, highlight=False, soft_wrap=False)


def say(text: str, *, err: bool = False) -> None:
    """One line, safe for a terminal whatever an engine has put into it."""
    typer.echo(clean(text), err=err)


def clean(text: str) -> str:
    """`text` without what a terminal would take for a command."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def emit_data(value: Any, output: Format) -> None:
    """`value` as JSON or YAML on stdout."""
    if output is Format.YAML:
        import yaml  # noqa: PLC0415 - most verbs of most days need none

        typer.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120), nl=False)
    else:
        typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def emit_line(value: Any) -> None:
    """`value` as one line of JSON on stdout, at once: who reads a pipe waits for it."""
    typer.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Sequence[str] = ()) -> Table:
    """A table without lines. `right`: columns of numbers."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row))
    return made


def pairs(values: Mapping[str, str | Text]) -> Table:
    """Names and values below each other; empty values are left out."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in values.items():
        if value:
            made.add_row(name, value if isinstance(value, Text) else Text(clean(value)))
    return made


def status(word: str) -> Text:
    """A status in its colour."""
    return Text(clean(word), style=STYLES.get(word, ""))


def local(iso: str) -> str:
    """An ISO-8601 time of the engine as local time; what is none is given back as it is."""
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return iso


def local_time(iso: str) -> str:
    """The time of day of it."""
    return local(iso).rpartition(" ")[2]
