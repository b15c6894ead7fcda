"""The parts of the variables that an expression reads: the engine gets no others, for converting data is dear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tables.cel.tree import Call, Constant, Expr, Macro, MakeList, MakeMap, Name, Select

VARIABLES = ("inputs", "outputs", "status", "state", "ceremony")

# By key: None for the whole value, else the parts of it; no parts where only its presence matters.
ReadPaths = dict[str, "ReadPaths | None"]


def reads_of(tree: Expr) -> ReadPaths:
    """Return the parts of the variables that an expression reads, by variable."""
    found: ReadPaths = {}
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        whole, path = True, _path(node)
        if path is None:
            whole, path = False, _tested(node)
        if path is None:
            waiting += children(node)
        else:
            _add(found, path, whole=whole)
    return found


def children(node: Expr) -> tuple[Expr, ...]:
    """Return the nodes right below a node."""
    match node:
        case Select(operand=operand):
            return (operand,)
        case Call(arguments=nodes) | MakeList(elements=nodes) | MakeMap(entries=nodes):
            return nodes
        case Macro():
            return (node.walked, node.first, node.goes_on, node.step, node.result)
        case _:
            return ()


def nodes_of(tree: Expr) -> Iterator[Expr]:
    """Yield a node and all below it."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += children(node)


def picked(value: Any, parts: ReadPaths | None) -> Any:
    """Return the parts of a value, in the form of the value."""
    if parts is None:
        return value
    if isinstance(value, Mapping):
        return {key: picked(value[key], inner) for key, inner in parts.items() if key in value}
    if isinstance(value, list):
        return []
    return "" if isinstance(value, str) else value


def _path(node: Expr) -> tuple[str, ...] | None:
    """Return the variable and the constant keys that lead to a node."""
    match node:
        case Name(name=name):
            return (name,) if name in VARIABLES else None
        case Select(operand=operand, key=key, only_tests=False):
            before = _path(operand)
        case Call(function="_[_]", arguments=(operand, Constant(value=str(key)))):
            before = _path(operand)
        case _:
            return None
    return None if before is None else (*before, key)


def _tested(node: Expr) -> tuple[str, ...] | None:
    """Return the path whose presence a node tests: `has(inputs.a)`, or `'a' in inputs`."""
    match node:
        case Select(operand=operand, key=key):
            before = _path(operand)
            return None if before is None else (*before, key)
        case Call(function="@in", arguments=(Constant(value=str(key)), Name(name=name))) if name in VARIABLES:
            return (name, key)
        case _:
            return None


def _add(reads: ReadPaths, path: tuple[str, ...], *, whole: bool) -> None:
    for key in path[:-1]:
        inner = reads.setdefault(key, {})
        if inner is None:
            return
        reads = inner
    if whole:
        reads[path[-1]] = None
    else:
        reads.setdefault(path[-1], {})
