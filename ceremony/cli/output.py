"""Lines, JSON and YAML that the verbs print. Tables for people are in `display.py`, which loads more."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from ports.masking import masked_urls


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Format, typer.Option("-o", "--output", help="For people, or for programs.", show_default=True)]


def say(text: str, *, err: bool = False) -> None:
    """Print one line. Text of an engine cannot control the terminal, and an error shows no password."""
    typer.echo(clean(masked_urls(text) if err else text), err=err)


def clean(text: str) -> str:
    """`text` with the characters replaced that a terminal could take for a command."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def emit_data(value: Any, output: Format) -> None:
    """Print `value` as JSON or YAML on stdout."""
    if output is Format.YAML:
        import yaml  # most calls need none

        typer.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120), nl=False)
    else:
        typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def emit_line(value: Any) -> None:
    """Print `value` as one line of JSON on stdout, and flush: the reader of a pipe waits for it."""
    typer.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    sys.stdout.flush()
