"""Reads the source where the running program does not keep something: strings below fields, arguments of calls."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ports", "tables", "steps", "streams", "bridge", "ceremony")


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module of the program, by path."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def field_docs(model: type) -> dict[str, str]:
    """The string below each field of a class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        path = inspect.getsourcefile(base) if base.__module__.split(".")[0] in PACKAGES else None
        if path is not None:
            found |= dict(_documented(Path(path), base.__name__))
    return found


def _documented(path: Path, name: str) -> Iterator[tuple[str, str]]:
    tree = modules()[path.resolve().relative_to(ROOT).as_posix()]
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name):
        for field, below in zip(owner.body, owner.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(below):
                yield field.target.id, ast.literal_eval(below.value)  # type: ignore[attr-defined]  # an Expr


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def shown_text(node: ast.expr) -> str:
    """A message as people may see it, with `…` for each inserted value; empty if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return shown_text(node.left) + shown_text(node.right)
    return ""
