"""The exit codes of the program, and the error that ends it with a code and one line on stderr."""

from __future__ import annotations

from enum import IntEnum

from ports.errors import CeremonyError


class Exit(IntEnum):
    """The exit codes, as `ceremony --help` lists them."""

    OK = 0
    FAILED = 1
    """Refused or failed."""
    USAGE = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    INTERRUPTED = 130


EPILOG = (
    "Exit codes: 0 ok · 1 refused or failed · 2 wrong usage · 3 the engine is unavailable · 4 not found. "
    "Errors are one line on stderr, `code: place: message; remedy`."
)

# By the name of a gRPC status; every other one is FAILED.
BY_STATUS = {
    "UNAVAILABLE": Exit.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Exit.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": Exit.UNAVAILABLE,
    "NOT_FOUND": Exit.NOT_FOUND,
}


class CommandFailed(CeremonyError):
    """Ends the program with its text on stderr and this exit code. A blank `code` means: nothing more to print."""

    def __init__(
        self, code: str = "", message: str = "", exit_code: Exit = Exit.FAILED, *, place: str = "", remedy: str = ""
    ) -> None:
        super().__init__(code, message, place=place, remedy=remedy)
        self.exit_code = exit_code


def unknown(instance_id: str) -> CommandFailed:
    """The error for an instance id that the engine does not know."""
    remedy = "" if ":" in instance_id else "an instance id is CEREMONY:STORY"
    return CommandFailed("unknown_instance", f"there is no ceremony {instance_id!r}", Exit.NOT_FOUND, remedy=remedy)


def refused(status: str, message: str) -> CommandFailed:
    """The error for a gRPC status. A `message` of the engine itself begins with its code; one of gRPC does not."""
    code, colon, text = message.partition(": ")
    if colon and code.isidentifier() and code.islower():
        return CommandFailed(code, text, BY_STATUS.get(status, Exit.FAILED))
    if status == "DEADLINE_EXCEEDED":
        return CommandFailed(
            "no_answer_in_time", "the engine did not answer in time", Exit.UNAVAILABLE, remedy="try again"
        )
    # gRPC's own words name sockets and internals, which do not help a reader of this line.
    if status == "UNAVAILABLE":
        return CommandFailed("unavailable", "the engine cannot be reached, or the connection broke", Exit.UNAVAILABLE)
    return CommandFailed(status.lower(), message or "the engine gave no reason", BY_STATUS.get(status, Exit.FAILED))
