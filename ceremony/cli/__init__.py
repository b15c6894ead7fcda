"""The command line `ceremony`: one module for each group of verbs; `run` builds it and never shows a traceback."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from ceremony.cli import ceremonies, deadletters, decisions, doctor, history, init, operations, serve, validate, watch
from ceremony.cli.errors import EPILOG, CommandFailed, Exit
from ceremony.cli.output import say
from ceremony.cli.republish import republish_verb
from ceremony.cli.root import Root
from ceremony.version import VERSION

__all__ = ["Root", "build", "run"]

CEREMONIES, LOOK = "Ceremonies", "Look"


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if wanted:
        typer.echo(f"ceremony {VERSION}")
        raise typer.Exit


def build(root: Root) -> typer.Typer:
    """The program with all its verbs."""
    app = typer.Typer(
        name="ceremony",
        help="The ceremony engine: run it, start ceremonies, follow and decide them.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    serve.add_verbs(app, root)
    app.command(rich_help_panel="Run")(republish_verb(root))
    for name, verb in (
        ("start", ceremonies.start),
        ("approve", decisions.approve),
        ("reject", decisions.reject),
        ("trigger", decisions.trigger),
        ("cancel", operations.cancel),
        ("pause", operations.pause),
        ("resume", operations.resume),
        ("retry", operations.retry),
        ("run", operations.run),
    ):
        app.command(name, rich_help_panel=CEREMONIES)(verb)
    for name, look in (
        ("get", ceremonies.get),
        ("list", ceremonies.list_),
        ("watch", watch.watch),
        ("history", history.history),
        ("doctor", doctor.doctor),
        ("definitions", deadletters.definitions),
    ):
        app.command(name, rich_help_panel=LOOK)(look)
    app.add_typer(deadletters.deadletters, name="deadletters", rich_help_panel=LOOK)
    validate.add_verbs(app, root)
    app.command(rich_help_panel=validate.FILES)(init.init)
    app.command(rich_help_panel=validate.FILES)(init.schema)
    return app


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the release and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def run(root: Root, arguments: Sequence[str]) -> int:
    """Run the program with these arguments and return its exit code; errors are lines on stderr."""
    if sys.stdout is None:  # closed by who started us
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - it is the program's own until it ends
    try:
        return _run(root, arguments)
    except BrokenPipeError:
        # Who read us has gone, `| head` for one. What is still in the buffer has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED


def _run(root: Root, arguments: Sequence[str]) -> int:
    try:
        _check_text(arguments)
        typer.main.get_command(build(root)).main(list(arguments), prog_name="ceremony")
    except SystemExit as end:
        sys.stdout.flush()
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except CommandFailed as failed:
        sys.stdout.flush()
        if failed.code:
            say(str(failed), err=True)
        return failed.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last one who can keep a traceback from a person
        return _unexpected(error)
    return Exit.OK


def _check_text(arguments: Sequence[str]) -> None:
    """Raises CommandFailed for an argument that is no text in this locale: no engine and no file could take it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="replace").decode()
            raise CommandFailed("argument_not_utf8", f"{shown} is no UTF-8 text", Exit.USAGE) from None


def _unexpected(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        say("no_space: the disk is full", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is in the buffer would fail again
        return Exit.FAILED
    if os.environ.get("CEREMONY_DEBUG"):
        traceback.print_exc()
    text = " ".join(str(error).split())
    say(f"internal_error: {type(error).__name__}: {text} (CEREMONY_DEBUG=1 shows where)", err=True)
    return Exit.FAILED
