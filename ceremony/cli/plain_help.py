"""Commands and groups of commands with plain help, for a quick `--help` and quick completion.

The library that draws boxes takes longer to load than all the rest of `ceremony --help`.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# Of every typer.Typer of the program.
PLAIN: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}


def write_sections(formatter: Any, entries: Iterable[tuple[str, tuple[str, str]]]) -> None:
    """Write (section, (name, help)) entries, section by section in the order in which they first come."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for section, entry in entries:
        sections.setdefault(section, []).append(entry)
    for section, rows in sections.items():
        with formatter.section(section):
            formatter.write_dl(rows)


# Words of a library before those of a wrong value.
_FOREIGN_WORDS = "Value error, "


class PlainCommand(TyperCommand):
    """A command whose options of a panel have a section of their own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            left: list[str] = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix(_FOREIGN_WORDS)
            raise
        return left

    def get_params(self, ctx: Any) -> Any:
        return _quick(ctx, super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        entries = ((_section(param), param.get_help_record(ctx)) for param in self.get_params(ctx))
        write_sections(formatter, ((section, record) for section, record in entries if record))


class PlainGroup(TyperGroup):
    """A group that shows the whole first paragraph of each command's help."""

    def get_params(self, ctx: Any) -> Any:
        return _quick(ctx, super().get_params(ctx))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        entries = ((command.name or "", _paragraph(command.help)) for command in self.commands.values())
        write_sections(formatter, (("Commands", entry) for entry in entries))


def typer_command(name: str, function: Any) -> Any:
    """The command of a function with typer's annotations."""
    app = typer.Typer(add_completion=False, **PLAIN)
    app.command(name, cls=PlainCommand)(function)
    return typer.main.get_command(app)


def _section(param: Any) -> str:
    usual = "Arguments" if param.param_type_name == "argument" else "Options"
    return getattr(param, "rich_help_panel", None) or usual


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n", maxsplit=1)[0].split())


def _quick(ctx: Any, params: list[Any]) -> list[Any]:
    """The parameters. Completion takes their values as they are typed: to convert them, typer would load pydantic."""
    return [_unconverted(param) for param in params] if ctx.resilient_parsing else params


def _unconverted(param: Any) -> Any:
    param = copy(param)
    param.process_value = lambda _, value: value
    return param
