"""CEL expressions of guards, on Google's C++ engine, bounded and made safe.

Evaluation errors come back as values that are truthy, so only a result that `is True` counts. Sources are capped at
4 KiB (parse time grows with length); the engine itself bounds recursion (32) and iterations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cel_expr_python import cel

from ports.errors import CeremonyError

MAX_SOURCE_BYTES = 4096
MAX_REASON = 200
MAX_MAPS = 2
# Entries. `map` and `filter` copy their result at each element: with 10,000 entries a fold takes seconds.
MAX_LIST = 2000

# The binding raises RuntimeError for its own errors, the other two for data that it cannot convert.
_RAISED = (RuntimeError, TypeError, ValueError)  # RecursionError is a RuntimeError

_MAP = re.compile(r"\bmap\s*\(")
_BUILDS = re.compile(r"\b(?:map|filter)\s*\(")
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


@lru_cache(maxsize=1024)
def compiled(source: str) -> cel.Expression:
    """The program of an expression. Raises CeremonyError `bad_expression`."""
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
        return _environment.compile(source)
    except _RAISED as error:
        raise CeremonyError("bad_expression", f"no CEL expression over {_VARIABLES}: {_short(error)}") from None


# Every other reason says that the expression could not be judged, or is not boolean.
TRUE, FALSE = "the expression is true", "the expression is false"


def builds_lists(source: str) -> bool:
    """Return whether the expression may make new lists, element by element."""
    return _BUILDS.search(source) is not None


def longer_than(data: Any, limit: int) -> bool:
    """Return whether a list or map in the data has more entries than `limit`."""
    left = [data]
    while left:
        value = left.pop()
        if len(value) > limit:
            return True
        left += [
            item for item in (value.values() if isinstance(value, dict) else value) if isinstance(item, dict | list)
        ]
    return False


def evaluate(program: cel.Expression, data: Mapping[str, Any]) -> tuple[bool, str]:
    """Evaluate a guard: (whether the expression is true, the reason). Never raises."""
    try:
        value, kind = _evaluated(program, data)
        if kind in _ERRORS and "out of range" in str(value):
            value, kind = _evaluated(program, _tamed(data))
    except _RAISED as error:  # a guard that cannot be judged does not hold
        return False, _short(error)
    if value is True:
        return True, TRUE
    if value is False:
        return False, FALSE
    if kind in _ERRORS:
        return False, _short(value)
    return False, f"the expression is not boolean but {kind}"


def _evaluated(program: cel.Expression, data: Mapping[str, Any]) -> tuple[Any, str]:
    result = program.eval(data=data)
    return result.value(), result.type().name()


def _tamed(value: Any) -> Any:
    """Clamp whole numbers to CEL's 64 bits: one larger number anywhere makes the engine refuse all the data."""
    if isinstance(value, dict):
        return {key: _tamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tamed(item) for item in value]
    if isinstance(value, int) and abs(value) >= 1 << 63:
        beyond = math.inf if value > 0 else -math.inf
        return beyond if value.bit_length() > _DOUBLE_BITS else float(value)
    return value


_VARIABLES = "inputs, outputs, status, state, ceremony"


def _short(error: object) -> str:
    """The engine's first line without its frame: `Key not found in map : "b"`."""
    lines = str(error).splitlines() or ["failed"]
    text = lines[0].partition("ERROR: <input>:")[2] or lines[0]
    for status in ("INVALID_ARGUMENT: ", "NOT_FOUND: ", "INTERNAL: ", "CANCELLED: "):
        text = text.removeprefix(status)
    return text[:MAX_REASON]
