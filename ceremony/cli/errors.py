"""How the program ends: one exit code for each kind of failure, one line on stderr, never a traceback."""

from __future__ import annotations

from enum import IntEnum


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
    "Errors are one line on stderr, `code: what, where, what would be right`."
)

BY_STATUS = {
    "UNAVAILABLE": Exit.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Exit.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": Exit.UNAVAILABLE,
    "NOT_FOUND": Exit.NOT_FOUND,
}
"""By the name of a gRPC status; every other one is FAILED."""


class CommandFailed(Exception):
    """Ends the program: `code: text` on stderr, and this exit code. A blank `code` says that all has been said."""

    def __init__(self, code: str = "", text: str = "", exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(f"{code}: {text}" if code else "")
        self.code = code
        self.text = text
        self.exit_code = exit_code


def refused(status: str, message: str) -> CommandFailed:
    """What a refusal of the engine means here; `message` begins with its code where the engine itself has answered."""
    code, colon, text = message.partition(": ")
    if colon and code.isidentifier() and code.islower():
        return CommandFailed(code, text, BY_STATUS.get(status, Exit.FAILED))
    if status == "DEADLINE_EXCEEDED":
        return CommandFailed("no_answer_in_time", "the engine did not answer in time; try again", Exit.UNAVAILABLE)
    # gRPC's own words name sockets and internals; who reads this wants to know what to do.
    if status == "UNAVAILABLE":
        return CommandFailed("unavailable", "the engine cannot be reached, or the connection broke", Exit.UNAVAILABLE)
    return CommandFailed(status.lower(), message or "the engine gave no reason", BY_STATUS.get(status, Exit.FAILED))
