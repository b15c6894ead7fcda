"""Arguments and options that several verbs share."""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# Used without --server, CEREMONY_SERVER and a `ceremony dev` of this folder.
DEFAULT_SERVER = "localhost:50057"


class Level(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class Status(StrEnum):
    """The statuses of a ceremony; `tables` has the same, and takes longer to load than `--help` may."""

    RUNNING = "RUNNING"
    WAITING_FOR_HUMAN = "WAITING_FOR_HUMAN"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"


# -- of verbs that call an engine

InstanceArgument = Annotated[str, typer.Argument(metavar="ID", help="Instance id, CEREMONY:STORY.")]
ActorOption = Annotated[
    str | None,
    typer.Option(envvar="CEREMONY_ACTOR", help="Name of the actor; default: your login name.", show_default=False),
]
ReasonOption = Annotated[str, typer.Option("-m", "--reason", help="Reason, kept with the ceremony's events.")]

# -- of verbs that run an engine, or read its log

LogOption = Annotated[
    str | None,
    typer.Option("--log", help="The log: kafka://host:port or sqlite:///path.", show_default=False),
]
GrpcOption = Annotated[str | None, typer.Option(help="Address of gRPC, host:port.", show_default=False)]
HttpOption = Annotated[str | None, typer.Option(help="Address of health and metrics, host:port.", show_default=False)]
CeremoniesOption = Annotated[
    Path | None, typer.Option(help="Folder of definitions; default: CEREMONIES_DIR, else specs/ceremonies.")
]
# Of `dev` and `demo`, which a newcomer may start in an empty folder.
TriedOption = Annotated[
    Path | None,
    typer.Option(
        "--ceremonies-dir",
        help="Folder of definitions; default: CEREMONIES_DIR, else specs/ceremonies, else the examples.",
        show_default=False,
    ),
]


def login() -> str:
    """The login name of the user, for `--actor` and `--requested-by`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "ceremony-cli"


def named_values(options: Iterable[str]) -> dict[str, str]:
    """Parse repeated `--input NAME=VALUE`. Raises BadParameter."""
    given: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option!r} is not NAME=VALUE", param_hint="--input")
        if name in given:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--input")
        given[name] = value
    return given
