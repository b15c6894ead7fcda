"""Checks that each class name stands for one thing: none is defined twice in production code, also no private one."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("ports", "tables", "steps", "streams", "bridge", "ceremony")
GENERATED = "_pb2"


def class_places(root: Path) -> dict[str, list[str]]:
    """Return the places, as `path:line`, of every class name defined below `root`."""
    places = defaultdict(list)
    for path in modules(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(root).as_posix()}:{node.lineno}")
    return places


def modules(root: Path) -> Iterator[Path]:
    """Every module of production code, generated ones left out."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if GENERATED not in path.name:
                yield path


def check(root: Path) -> list[str]:
    """Return a line for each class name that is defined more than once."""
    return [
        f"{places[0]}: class {name} is also defined at {', '.join(places[1:])}; give each its own name"
        for name, places in sorted(class_places(root).items())
        if len(places) > 1
    ]


def main() -> int:
    """Exit code 1, with a line for each finding on stderr, when a name is defined twice."""
    findings = check(Path(__file__).resolve().parent.parent)
    for finding in findings:
        print(f"names: {finding}", file=sys.stderr)
    if not findings:
        print("names: each class has a name of its own")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
