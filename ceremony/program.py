"""The program `ceremony`: runs the command line, ends with an exit code, and never shows a traceback."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from ceremony.cli import verbs
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.output import say
from ceremony.process_list import hide_credentials


def main() -> None:
    """Run the program with the arguments of this process, and end it."""
    hide_credentials(sys.argv[1:])
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the program with these arguments and return its exit code; errors are lines on stderr."""
    # Lines of gRPC's C core go past every logger; each failure that matters is an error in Python, too. This must come
    # before gRPC is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if sys.stdout is None:  # closed by the process that started us
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - it is the program's own until it ends
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader has gone, `| head` for one. The rest of the buffer has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED


def _run(arguments: Sequence[str]) -> int:
    try:
        _check_text(arguments)
        verbs.command().main(list(arguments), prog_name="ceremony")
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
    except Exception as error:  # noqa: BLE001 - the last place that can keep a traceback from a person
        return _unexpected(error)
    return Exit.OK


def _check_text(arguments: Sequence[str]) -> None:
    """Raises CommandFailed for an argument that is not text in this locale: neither engine nor file could take it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="replace").decode()
            raise CommandFailed("argument_not_utf8", f"{shown} is not UTF-8 text", Exit.USAGE) from None


def _unexpected(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        say("no_space: the disk is full", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the buffer would fail again
        return Exit.FAILED
    if os.environ.get("CEREMONY_DEBUG"):
        traceback.print_exc()
    text = " ".join(str(error).split())
    say(f"internal_error: {type(error).__name__}: {text} (CEREMONY_DEBUG=1 shows where)", err=True)
    return Exit.FAILED
