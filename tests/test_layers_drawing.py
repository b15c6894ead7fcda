"""The drawing of the layers in docs/concepts.md shows the imports between the packages."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.uncounted
ROOT = Path(__file__).parent.parent
PACKAGES = ("ceremony", "bridge", "streams", "steps", "tables", "ports")

Arrow = tuple[str, str]


def drawn(text: str) -> set[Arrow]:
    """The arrows of the drawing; `a --> b --> c` is two."""
    drawing = text[text.index("```mermaid") :].split("```")[1]
    chains = [re.split(r"\s*-->\s*", line.strip()) for line in drawing.splitlines() if "-->" in line]
    return {arrow for chain in chains for arrow in itertools.pairwise(chain)}


def imported() -> set[Arrow]:
    """Each pair of packages of which the first imports the second."""
    return {
        (package, name)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in _imports(path)
        if name in PACKAGES and name != package
    }


def _imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in named}


def reached(start: str, arrows: set[Arrow]) -> set[str]:
    """The packages that lie along the arrows from `start`."""
    beyond = {end for begin, end in arrows if begin == start}
    return beyond.union(*(reached(end, arrows) for end in beyond))


def test_each_arrow_of_the_drawing_is_an_import() -> None:
    arrows = drawn((ROOT / "docs/concepts.md").read_text())
    assert arrows, "docs/concepts.md has no drawing with arrows"
    assert arrows <= imported(), f"no import stands behind {sorted(arrows - imported())}"


def test_each_import_between_packages_lies_along_the_arrows() -> None:
    arrows = drawn((ROOT / "docs/concepts.md").read_text())
    missing = {(package, name) for package, name in imported() if name not in reached(package, arrows)}
    assert not missing, f"draw these in docs/concepts.md: {sorted(missing)}"
