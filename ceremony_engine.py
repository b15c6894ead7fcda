"""The program's entry: makes sure that the packages to be imported are the engine's own, then starts `ceremony`.

The engine's packages have plain names (`tables` is PyTables too), so the engine needs an environment of its own, as
docs/decisions/0013-an-application-with-its-own-environment.md explains. This module has the one name that no other
distribution has. It imports nothing but the standard library until all packages have been seen to be ours.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("ceremony", "bridge", "streams", "steps", "tables", "ports")
# Stands in the docstring of every package of ours.
MARK = b"ceremony engine"
HOME = Path(__file__).resolve().parent
FAILED = 1
REMEDY = "install it in an environment of its own: uv tool install ceremony-engine"


def intruder() -> str | None:
    """The line for the first package that is not the engine's: `code: text`. None where all are."""
    for name in PACKAGES:
        own = HOME / name / "__init__.py"
        spec = find_spec(name)
        found = None if spec is None else spec.origin
        if found is not None and Path(found).resolve() != own:
            return (
                f"package_shadowed: `{name}` would be imported from {found}, and the engine's own is {own};"
                f" take the other one off PYTHONPATH, or {REMEDY}"
            )
        if not _marked(own):
            return f"package_overwritten: {own} is not the engine's{_owners(name)}; {REMEDY}"
    return None


def _marked(package: Path) -> bool:
    try:
        return MARK in package.read_bytes()
    except OSError:
        return False


def _owners(name: str) -> str:
    """The distributions that installed a package of this name beside us; looked up only when it is too late."""
    from importlib.metadata import packages_distributions  # noqa: PLC0415 - it reads every installed distribution

    others = sorted({one for one in packages_distributions().get(name, ()) if one != "ceremony-engine"})
    return f" but that of {', '.join(others)}" if others else " any more"


def main() -> None:
    """Start the program, or end it with one line on stderr."""
    if line := intruder():
        print(line, file=sys.stderr)  # noqa: T201 - the command line's own output may be what is missing
        sys.exit(FAILED)
    from ceremony.program import main as program  # noqa: PLC0415 - only now it is known to be ours

    program()


if __name__ == "__main__":
    main()
