"""The cost of regular expressions, counted from their text: the same with every release of RE2."""

from __future__ import annotations

import re
from functools import lru_cache

# One part of a pattern after the other. A group's bounds are tokens of their own.
_TOKEN = re.compile(
    r"""
    (?P<unicode> \\[pP](?:\{[^}]*\}|.)? )
    | (?P<escape> \\Q.*?(?:\\E|$) | \\x\{[^}]*\} | \\. )
    | (?P<set> \[\^?\]?(?:\[:[^\]]*:\]|\\.|[^\]\\])*\]? )
    | (?P<repeat> \{(?P<least>\d+)(?:,(?P<most>\d*))?\} )
    | (?P<open> \( ) | (?P<close> \) ) | (?P<any> \. )
    | (?P<literal> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_FRAME, _LITERAL, _CLASS, _SET_BYTE, _UNICODE = 8, 4, 24, 2, 1400
_MOST_REPEATED = 1000
_MATCHED, _SEARCHED = 200, 16
# Steps of compiling a pattern, and for each unit of its weight, as measured: classes of Unicode are the dearest, then
# repetitions with two bounds and flags. CEL compiles a pattern at each call.
_CALLED, _PLAIN_COMPILED, _DEAR_COMPILED, _DEAREST_COMPILED = 700, 20, 60, 100
_DEAR, _DEAREST = re.compile(r"\{\d+,|\(\?"), re.compile(r"\\[pP]")


@lru_cache(maxsize=1024)
def pattern_weight(text: str) -> int:
    """Return a bound of the instructions of a compiled pattern."""
    totals, last = [0], 0
    for token in _TOKEN.finditer(text):
        kind, part = token.lastgroup, token[0]
        if token["repeat"]:
            bound = max(int(token["least"][:5]), int((token["most"] or "0")[:5])) + 1
            last *= min(bound, _MOST_REPEATED + 1)
        elif kind == "open":
            totals[-1] += last
            totals.append(_LITERAL)
            last = 0
            continue
        elif kind == "close" and len(totals) > 1:
            totals[-1] += last
            last = totals.pop()
            continue
        elif kind == "literal" and part in "*+?|^$":
            last += _LITERAL
        else:
            totals[-1] += last
            last = _weight(kind or "", part)
    return _FRAME + sum(totals) + last


def _weight(kind: str, part: str) -> int:
    size = len(part.encode("utf-8", "replace"))
    if kind == "unicode":
        return _UNICODE
    if kind == "set":
        return _CLASS + _SET_BYTE * size + _UNICODE * (part.count("\\p") + part.count("\\P"))
    return _CLASS if kind == "any" else _CLASS + _LITERAL * size if kind == "escape" else _LITERAL * size


def largest_pattern_weight(text_bytes: int) -> int:
    """Return a bound for any pattern of so many bytes."""
    return text_bytes * _UNICODE // 3 * _MOST_REPEATED


def call_cost(text: str | None, weight: int) -> int:
    """Return the steps of a call that compiles a pattern; None for a pattern that the data holds."""
    if text is None or _DEAREST.search(text):
        return _CALLED + _DEAREST_COMPILED * weight
    return _CALLED + (_DEAR_COMPILED if _DEAR.search(text) else _PLAIN_COMPILED) * weight


def match_cost(weight: int, text_bytes: int) -> int:
    """Return the steps of searching a text for a pattern."""
    return _MATCHED + text_bytes * weight // _SEARCHED
