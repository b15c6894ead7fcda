"""Checks that each name of a type stands for one thing in production code, also a private one.

A class is defined once. An alias of a type, such as `Handle = Callable[…]`, never has the name of a class, and two
modules that define the same alias define it alike.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("ports", "tables", "steps", "streams", "bridge", "ceremony", "proto")
GENERATED = "_pb2"
# A name as types have it; constants are in capitals.
TYPE_NAME = re.compile(r"_?[A-Z]\w*[a-z]\w*")


def class_places(root: Path) -> dict[str, list[str]]:
    """Return the places, as `path:line`, of every class name defined below `root`."""
    places = defaultdict(list)
    for path in modules(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(root).as_posix()}:{node.lineno}")
    return places


def alias_places(root: Path) -> dict[str, dict[str, str]]:
    """Return the definitions of every alias of a type below `root`, each with one place."""
    places: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for path in modules(root):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if TYPE_NAME.fullmatch(name):
                    places[name][ast.dump(node.value)] = f"{path.relative_to(root).as_posix()}:{node.lineno}"
    return places


def modules(root: Path) -> Iterator[Path]:
    """Every module of production code, generated ones left out."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if GENERATED not in path.name:
                yield path


def check(root: Path) -> list[str]:
    """Return a line for each name of a class or an alias that stands for more than one thing."""
    classes, aliases = class_places(root), alias_places(root)
    found = {name: [*classes.get(name, ()), *aliases.get(name, {}).values()] for name in classes | aliases}
    return [
        f"{places[0]}: {'class' if name in classes else 'alias'} {name} is also defined at {', '.join(places[1:])};"
        " give each its own name"
        for name, places in sorted(found.items())
        if len(places) > 1
    ]


def main() -> int:
    """Exit code 1, with a line for each finding on stderr, when a name stands for two things."""
    findings = check(Path(__file__).resolve().parent.parent)
    for finding in findings:
        print(f"names: {finding}", file=sys.stderr)
    if not findings:
        print("names: each class and each alias has a name of its own")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
