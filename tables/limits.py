"""How much one ceremony may hold, and how a value from outside is weighed once, on arrival (specification 20.1)."""

from __future__ import annotations

from typing import Any

import msgspec

from ports.errors import CeremonyError

KIB = 1024
MAX_INPUTS = 256 * KIB
# Of one output, and of one agent's answer.
MAX_OUTPUT = 256 * KIB
# Of inputs, outputs and gathered answers together.
MAX_ROW = 768 * KIB
MAX_INPUT_DEPTH = 64
# Nested containers; far below what any JSON reader on the way can take, and outputs may wrap inputs.
MAX_OUTPUT_DEPTH = 128
# From one command (specification 12.6).
MAX_TRANSITIONS = 100
# Steps of one command that are settled in the fold, each once. Past that a step's agent is asked: every command
# ends, and a ceremony that goes round and round does so at the pace of its agents.
MAX_AT_ONCE = 32
# Past so many transitions of one command its steps are asked for: those that were settled must not bring it near
# the number that fails a ceremony.
TRANSITIONS_AT_ONCE = 10
# Of one attempt.
MAX_ANSWERS = 1000
# Characters of a message, a comment or a reason that are kept.
MAX_TEXT = 2000
# Characters of a foreign id or name that are kept.
MAX_ID = 256

# A value of at most so many bytes cannot nest deeper than half of them.
_SMALL = 256
_SCALARS = frozenset({str, int, float, bool, type(None)})
_encode = msgspec.json.Encoder().encode


class Unfit(CeremonyError):
    """A value from outside cannot be kept; `code` is output_too_large, output_too_deep or output_not_json."""


def weigh(value: Any, claimed: int = 0, what: str = "the output") -> int:
    """Bytes of the value's JSON; `claimed` is what its sender measured, 0 where nobody has. Raises Unfit."""
    if claimed > MAX_OUTPUT:
        raise Unfit("output_too_large", f"{what} has {claimed} bytes, at most {MAX_OUTPUT} are kept")
    size = claimed
    if claimed <= _SMALL:
        try:
            size = len(_encode(value))
        except RecursionError:
            raise Unfit("output_too_deep", f"{what} nests deeper than {MAX_OUTPUT_DEPTH} containers") from None
        except (TypeError, ValueError, OverflowError):
            raise Unfit("output_not_json", f"{what} is no JSON value") from None
        if size > MAX_OUTPUT:
            raise Unfit("output_too_large", f"{what} has {size} bytes, at most {MAX_OUTPUT} are kept")
    if size > _SMALL and deeper_than(value, MAX_OUTPUT_DEPTH):
        raise Unfit("output_too_deep", f"{what} nests deeper than {MAX_OUTPUT_DEPTH} containers")
    return size


def deeper_than(value: Any, limit: int) -> bool:
    """Whether containers nest deeper than `limit`; looks no further than that, and does not recurse."""
    level = [value]
    depth = 0
    while level:
        beneath: list[Any] = []
        nested = False
        for item in level:
            kind = type(item)
            if kind is dict:
                nested = True
                beneath += [v for v in item.values() if type(v) not in _SCALARS]
            elif kind is list or kind is tuple:
                nested = True
                beneath += [v for v in item if type(v) not in _SCALARS]
        if not nested:
            return False
        depth += 1
        if depth > limit:
            return True
        level = beneath
    return False


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """A foreign text, no longer than a row keeps it.

    Raises TypeError when it is no text, UnicodeEncodeError when it has no UTF-8 form.
    """
    if type(text) is not str:
        raise TypeError(f"a text was expected, not {type(text).__name__}")
    if not text.isascii():
        text.encode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
