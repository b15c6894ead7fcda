"""CEL expressions of guards, on Google's C++ engine, bounded and made safe.

The cost is counted before an expression is judged. Evaluation errors come back as values that are truthy, so only a
result that `is True` counts. Sources are capped at 4 KiB (parse time grows with length); the engine itself bounds
recursion (32) and iterations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from cel_expr_python import cel

from ports.errors import CeremonyError
from tables.cel.cost import NotJudged, broken_rules, counted
from tables.cel.reads import VARIABLES, ReadPaths, reads_of
from tables.cel.tree import Expr, tree_of
from tables.work import Work, WorkSpent

MAX_SOURCE_BYTES = 4096
MAX_REASON = 200
MAX_MAPS = 2
# Steps of work (tables/work.py) of one judgement, whatever its expression and data.
_JUDGED_STEPS = 1500

# The binding raises RuntimeError for its own errors, the other two for data that it cannot convert.
_RAISED = (RuntimeError, TypeError, ValueError)  # RecursionError is a RuntimeError

_MAP = re.compile(r"\bmap\s*\(")
_ERRORS = {"ERROR", "*error*"}
_DOUBLE_BITS = 1023
_by_name = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
_environment = cel.NewEnv(
    variables={
        "inputs": _by_name,
        "outputs": _by_name,
        "status": cel.Type.Map(cel.Type.STRING, cel.Type.STRING),
        "state": cel.Type.STRING,
        "ceremony": _by_name,
    }
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression."""

    source: str
    program: cel.Expression = field(compare=False, repr=False)
    tree: Expr = field(compare=False, repr=False)
    reads: ReadPaths = field(compare=False, repr=False)
    """The parts of the variables that it reads."""
    broken: tuple[tuple[str, str], ...]
    """Rules (code, message) by which it is never judged, whatever the data."""


@lru_cache(maxsize=1024)
def compiled(source: str) -> Expression:
    """Compile an expression. Raises CeremonyError `bad_expression`."""
    if len(source.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
        raise CeremonyError("bad_expression", f"a CEL expression has at most {MAX_SOURCE_BYTES} bytes")
    if not source.strip():
        raise CeremonyError("bad_expression", "a CEL expression stands after `cel:`")
    maps = len(_MAP.findall(source))
    if maps > MAX_MAPS or (maps and "+" in source):
        raise CeremonyError(
            "bad_expression",
            f"a CEL expression may use `map` at most {MAX_MAPS} times, and not together with `+`: what it makes could "
            "double at each",
        )
    try:
        program = _environment.compile(source)
    except _RAISED as error:
        raise CeremonyError(
            "bad_expression", f"no CEL expression over {', '.join(VARIABLES)}: {_short(error)}"
        ) from None
    tree = tree_of(program)
    return Expression(source, program, tree, reads_of(tree), tuple(broken_rules(tree)))


class Judged(NamedTuple):
    """The judgement of an expression."""

    reason: str
    """A fixed text: it may reach rows and effects, which are the same on every machine."""
    detail: str = ""
    """For logs and people: the engine's own words on a failure, which differ by release."""
    holds: bool = False


TRUE = Judged("the expression is true", holds=True)
FALSE = Judged("the expression is false")
# Codes of expressions that a rule forbids to judge, not only on this occasion.
FORBIDDEN = frozenset({"cel_over_map", "cel_time_zone", "cel_too_costly"})
_FAILED = "cel_failed: the expression fails on these values"
_NOT_BOOLEAN = "cel_not_boolean: the expression is neither true nor false"


def evaluate(expression: Expression, variables: Mapping[str, Any], work: Work) -> Judged:
    """Judge an expression on the parts of the variables that it reads. Never raises."""
    for code, message in expression.broken:
        return Judged(f"{code}: {message}")
    try:
        work.spend(_JUDGED_STEPS)
        count = counted(expression.tree, variables, work)
    except (NotJudged, WorkSpent) as error:
        return Judged(f"{error.code}: {error.message}")
    return _judged(expression.program, _tamed(variables) if count.has_huge else variables)


def _judged(program: cel.Expression, data: Mapping[str, Any]) -> Judged:
    try:
        result = program.eval(data=data)
        value, kind = result.value(), result.type().name()
    except _RAISED as error:  # a guard that cannot be judged does not hold
        return Judged(_FAILED, _short(error))
    if value is True:
        return TRUE
    if value is False:
        return FALSE
    return Judged(_FAILED, _short(value)) if kind in _ERRORS else Judged(_NOT_BOOLEAN, f"it is {kind}")


def _tamed(value: Any) -> Any:
    """Clamp whole numbers to CEL's 64 bits: one larger number anywhere makes the engine refuse all the data."""
    if isinstance(value, Mapping):
        return {key: _tamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tamed(item) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        beyond = math.inf if value > 0 else -math.inf
        return beyond if value.bit_length() > _DOUBLE_BITS else float(value)
    return value


def _short(error: object) -> str:
    """The engine's first line without its frame: `Key not found in map : "b"`."""
    lines = str(error).splitlines() or ["failed"]
    text = lines[0].partition("ERROR: <input>:")[2] or lines[0]
    for status in ("INVALID_ARGUMENT: ", "NOT_FOUND: ", "INTERNAL: ", "CANCELLED: "):
        text = text.removeprefix(status)
    return text[:MAX_REASON]
