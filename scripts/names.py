"""Checks names and errors of production code: one class per name, one error tree, no code inside a message.

A class name, also a private one, may be defined once in all packages. An exception class derives from `CeremonyError`,
directly or not, except a private one that serves the control flow of its module. A raise gives the code as an argument
of its own, not as the beginning of the message.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("ports", "tables", "steps", "streams", "bridge", "ceremony")
GENERATED = "_pb2"
ROOT_ERROR = "CeremonyError"
# The code of an error, in front of its message: `log_in_use: the file is open in another process`.
CODE_FIRST = re.compile(r"[a-z]+(?:_[a-z]+)+: ")


class ClassPlace(NamedTuple):
    """A class and the line that defines it."""

    place: str
    name: str
    bases: tuple[str, ...]


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module of production code with its path from the root, in order."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if GENERATED not in path.name:
                yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def classes(root: Path) -> list[ClassPlace]:
    return [
        ClassPlace(f"{name}:{node.lineno}", node.name, tuple(_base(base) for base in node.bases))
        for name, module in modules(root)
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    ]


def _base(base: ast.expr) -> str:
    """The last part of a base's name: `Error` of `nats.errors.Error`."""
    if isinstance(base, ast.Subscript):
        base = base.value
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def repeated(found: list[ClassPlace]) -> Iterator[str]:
    """Class names that are defined more than once."""
    places = defaultdict(list)
    for one in found:
        places[one.name].append(one.place)
    for name, where in sorted(places.items()):
        if len(where) > 1:
            yield f"{where[0]}: class {name} is also defined at {', '.join(where[1:])}; give each its own name"


def outside_the_tree(found: list[ClassPlace]) -> Iterator[str]:
    """Exception classes that do not derive from the root of the error tree."""
    bases = {one.name: one.bases for one in found}
    for one in found:
        above = _ancestors(one.name, bases)
        inside = one.name == ROOT_ERROR or ROOT_ERROR in above or one.name.startswith("_")
        if not inside and any(map(_is_built_in_error, above)):
            yield f"{one.place}: exception {one.name} does not derive from {ROOT_ERROR}"


def _ancestors(name: str, bases: dict[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    left = list(bases.get(name, ()))
    while left:
        base = left.pop()
        if base not in found:
            found.add(base)
            left += bases.get(base, ())
    return found


def _is_built_in_error(name: str) -> bool:
    known = getattr(builtins, name, None)
    return isinstance(known, type) and issubclass(known, BaseException)


def codes_in_messages(root: Path) -> Iterator[str]:
    """Raised errors whose message begins with a code."""
    for name, module in modules(root):
        for node in ast.walk(module):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            if CODE_FIRST.match(_beginning(node.exc.args[0])):
                yield f"{name}:{node.lineno}: the code is an argument of its own, not part of the message"


def _beginning(argument: ast.expr) -> str:
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


def check(root: Path) -> list[str]:
    """Everything wrong in the repository at `root`, each with its place."""
    found = classes(root)
    return [*repeated(found), *outside_the_tree(found), *codes_in_messages(root)]


def main() -> int:
    """Exit code 1, with a line for each finding on stderr, when something is wrong."""
    findings = check(Path(__file__).resolve().parent.parent)
    for finding in findings:
        print(f"names: {finding}", file=sys.stderr)
    if not findings:
        print("names: each class has its own name, and each error stands in the tree")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
