"""Keeps credentials out of the list of processes, which every user of a machine may read."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from ports.masking import masked

# Options whose value may hold a password, with the variable that does the same.
VARIABLES: Mapping[str, str] = {"--log": "CEREMONY_LOG", "--nats": "NATS_URL"}


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without options that hold credentials, and the variables that take their place."""
    kept: list[str] = []
    moved: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        option, has_value, value = argument.partition("=")
        if option not in VARIABLES:
            kept.append(argument)
            continue
        given = value if has_value else next(rest, None)
        if given is not None and masked(given) != given:
            moved[VARIABLES[option]] = given
        else:
            kept += [argument] if has_value or given is None else [argument, given]
    return kept, moved


def hide_credentials(arguments: Sequence[str]) -> None:
    """Begin this process anew, under its id, without credentials in its arguments; return where there are none."""
    kept, moved = split(arguments)
    if not moved:
        return
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    # Our own program and arguments.
    os.execve(sys.executable, [sys.executable, *program, *kept], {**os.environ, **moved})  # noqa: S606
