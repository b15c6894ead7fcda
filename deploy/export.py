"""Writes deploy/requirements.txt and requirements-build.txt from requirements.lock, or checks them with `--check`.

The lock names for each package those that need it (`# via`). The packages of the program are those that it needs
itself, and the packages that they need; the others are of the tests.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PROGRAM = frozenset({"ceremony-engine (pyproject.toml)", "fleet-planning-ceremony"})
# Tools that build the wheels of the engine in its image.
BUILDING = frozenset({"setuptools", "uv"})
NAME = re.compile(r"([A-Za-z0-9._-]+)==")
VIA = re.compile(r"^    # via (.+)$|^    #   (.+)$", re.MULTILINE)


def entries(lock: str) -> Iterator[tuple[str, str]]:
    """Yield each package with its lines."""
    for entry in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]:
        named = NAME.match(entry)
        if named is None:
            raise ValueError(f"no package: {entry.splitlines()[0]}")
        yield named[1], entry


def needing(entry: str) -> set[str]:
    """Return the packages that need this one."""
    return {(one or other).strip() for one, other in VIA.findall(entry)} - {""}


def of_program(lock: str) -> set[str]:
    """Return the packages that the program needs, directly or not."""
    found, grown = set(PROGRAM), True
    packages = dict(entries(lock))
    while grown:
        more = {name for name, entry in packages.items() if name not in found and needing(entry) & found}
        found |= more
        grown = bool(more)
    return found - PROGRAM


def exported(lock: str, names: Collection[str], contents: str) -> str:
    lines = [f"# {contents}, from requirements.lock by deploy/export.py.\n"]
    lines += [re.sub(r"^    #.*\n", "", entry, flags=re.MULTILINE) for name, entry in entries(lock) if name in names]
    return "".join(lines)


def main() -> int:
    lock = LOCK.read_text("utf-8")
    wanted = {
        "requirements.txt": exported(lock, of_program(lock), "The packages that the program needs"),
        "requirements-build.txt": exported(lock, BUILDING, "The tools that build its wheels"),
    }
    stale = []
    for name, text in wanted.items():
        path = ROOT / "deploy" / name
        if "--check" in sys.argv[1:]:
            stale += [name] if not path.is_file() or path.read_text("utf-8") != text else []
        else:
            path.write_text(text, "utf-8")
    if stale:
        print(f"not as requirements.lock says: {', '.join(stale)}; run deploy/export.py", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
