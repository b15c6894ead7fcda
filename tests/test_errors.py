"""All errors of the program are in one tree; their codes are attributes, not parts of their texts."""

from __future__ import annotations

import ast
import builtins
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.uncounted
ROOT = Path(__file__).parent.parent
PACKAGES = ("ports", "tables", "steps", "streams", "bridge", "ceremony")
BUILTIN = frozenset(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
)
CODE_IN_TEXT = re.compile(r"[a-z]+(_[a-z]+)+: ")


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of every production module, by path."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def outside_the_tree(tree: ast.Module) -> Iterator[str]:
    """Classes whose bases are built-in exceptions only."""
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases):
        if all(isinstance(base, ast.Name) and base.id in BUILTIN for base in node.bases):
            yield node.name


def codes_in_texts(tree: ast.Module) -> Iterator[int]:
    """Lines of raises whose first argument is a text that begins with a code."""
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(call, ast.Call) and call.args and CODE_IN_TEXT.match(_beginning(call.args[0])):
            yield call.lineno


def _beginning(argument: ast.expr) -> str:
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]
    return str(argument.value) if isinstance(argument, ast.Constant) else ""


def test_every_exception_class_derives_from_the_root() -> None:
    found = [f"{path}: {name}" for path, tree in modules().items() for name in outside_the_tree(tree)]
    assert found == ["ports/errors.py: CeremonyError"]


def test_no_raise_writes_a_code_into_the_text() -> None:
    found = [f"{path}:{line}" for path, tree in modules().items() for line in codes_in_texts(tree)]
    assert not found, f"pass the code as an argument of its own: {found}"


def test_the_checks_find_a_class_and_a_raise() -> None:
    """Both checks report a planted mistake."""
    tree = ast.parse('class Odd(ValueError): ...\nraise Odd(f"odd_code: {1}")\nraise Odd("odd_code", "an odd text")')
    assert list(outside_the_tree(tree)) == ["Odd"]
    assert list(codes_in_texts(tree)) == [2]
