"""Checks that docstrings are plain sentences: few open with a question word, and few use "what".

A docstring opens with its subject: "Return the offset behind the last record", not "Where the last record ends". The
word "what" mostly stands in place of a noun that would be clearer. Both have a limit over all packages together. An
explanation of a module's constant stands above it as a comment: a string below it is no docstring, and always wrong.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("ports", "tables", "steps", "streams", "bridge", "ceremony", "ceremony_engine.py", "proto")
WHAT_PER_1000 = 2.0
OPENINGS_PER_CENT = 3.0
GENERATED = "_pb2"

_OPENING = re.compile(r"(What|Who|Whom|Whose|Whether|Where|How|Which|Whoever|Whatever|Wherever)\b")
_WORD = re.compile(r"[A-Za-z']+")
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docstring:
    """One docstring and the place of its owner."""

    path: Path
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        return _WORD.findall(self.text)

    @property
    def whats(self) -> int:
        return sum(word.lower() == "what" for word in self.words)

    @property
    def opens_with_question(self) -> bool:
        return _OPENING.match(self.text) is not None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text.splitlines()[0]}"


def modules(places: Iterable[str]) -> Iterator[tuple[Path, ast.Module]]:
    """Every module below these folders, and each of these files; generated modules are left out."""
    for place in map(Path, places):
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if GENERATED not in path.name:
                yield path, ast.parse(path.read_text(encoding="utf-8"))


def strings_below_constants(path: Path, module: ast.Module) -> Iterator[str]:
    """Places of strings that follow an assignment of the module."""
    for before, after in itertools.pairwise(module.body):
        is_string = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if is_string and isinstance(before, ast.Assign | ast.AnnAssign):
            yield f"{path}:{after.lineno}"


def docstrings(path: Path, module: ast.Module) -> Iterator[Docstring]:
    for node in ast.walk(module):
        if isinstance(node, _Documented):
            text = ast.get_docstring(node)
            if text:
                yield Docstring(path, getattr(node, "lineno", 1), text)


def exceeded(found: list[Docstring]) -> list[str]:
    """Print both figures; return a line for each that is above its limit, with the docstrings that count."""
    words = sum(len(docstring.words) for docstring in found)
    whats = 1000.0 * sum(docstring.whats for docstring in found) / max(words, 1)
    opening = [docstring for docstring in found if docstring.opens_with_question]
    openings = 100.0 * len(opening) / max(len(found), 1)
    print(f'words: "what" {whats:.1f} times in 1,000 words of docstrings (limit {WHAT_PER_1000:g})')
    print(
        f"words: {openings:.1f} % of {len(found)} docstrings open with a question word (limit {OPENINGS_PER_CENT:g} %)"
    )
    lines = []
    if whats > WHAT_PER_1000:
        lines += ['too many docstrings use "what":', *(str(one) for one in found if one.whats)]
    if openings > OPENINGS_PER_CENT:
        lines += ["too many docstrings open with a question word:", *map(str, opening)]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1, with the docstrings on stderr, when a limit is exceeded; with `--report` always 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders", nargs="*", default=PACKAGES, help="folders and files; default: the packages of the engine"
    )
    parser.add_argument("--report", action="store_true", help="print the figures only")
    options = parser.parse_args(arguments)
    found = list(modules(options.folders))
    lines = exceeded([docstring for module in found for docstring in docstrings(*module)])
    if misplaced := [place for module in found for place in strings_below_constants(*module)]:
        lines += ["write these below a module's constant as comments above it:", *misplaced]
    if options.report or not lines:
        return 0
    print("\n".join(lines), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
