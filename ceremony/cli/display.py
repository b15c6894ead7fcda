"""Tables for people, on terminals of any width, and their colours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceremony.cli.output import clean

# Columns of a pipe: one line per row, and nothing is cut.
WIDE = 1_000

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

# Columns. On a narrower terminal, lines that wrap are easier to read than columns of one letter.
NARROWEST = 60


def console(file: IO[str] | None = None) -> Console:
    """A console on stdout (or `file`): coloured on a terminal unless NO_COLOR is set, elsewhere plain wide lines."""
    file = file or sys.stdout
    width = None if file.isatty() or "COLUMNS" in os.environ else WIDE
    if width is None and Console(file=file).width < NARROWEST:
        width = NARROWEST
    return Console(file=file, width=width, highlight=False, soft_wrap=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Sequence[str] = ()) -> Table:
    """A table without rules. `right`: columns of numbers."""
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
    """An ISO-8601 time as local time; any other text unchanged."""
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return iso


def local_time(iso: str) -> str:
    """The local time of day of an ISO-8601 time."""
    return local(iso).rpartition(" ")[2]
