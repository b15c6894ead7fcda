"""Limits of one ceremony; values from outside are measured once, on arrival (specification 20.1)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import msgspec

from ports.errors import CeremonyError

KIB = 1024
MAX_INPUTS_BYTES = 256 * KIB
# One output, or the answer of one agent.
MAX_OUTPUT_BYTES = 256 * KIB
# Everything that a row counts, when an output or an answer is added: inputs, outputs, gathered answers and texts.
MAX_ROW_BYTES = 768 * KIB
# The same, when only a text is added (the approval of a person, the reason of a failure): a full row can still be
# decided, and can fail. The uncounted rest of a row is bounded by its definition, so every row fits a record.
MAX_COUNTED_BYTES = MAX_ROW_BYTES + 256 * KIB
# A row may exceed that by the codes of failures only: at most MIN_CODE_BYTES a step.
MAX_WRITTEN_BYTES = MAX_COUNTED_BYTES + 128 * KIB
# The body of a step request as it is written to the log.
MAX_REQUEST_BYTES = 3 * 1024 * KIB
MAX_INPUT_DEPTH = 64
# Nested containers. Every JSON reader on the way takes far more, and outputs may wrap inputs.
MAX_OUTPUT_DEPTH = 128
# Applied by one command (specification 12.6).
MAX_TRANSITIONS = 100
# Steps that one command may finish in the fold, each once. The next ones are requested from their agents: so every
# command ends, and a ceremony in a cycle moves at the pace of its agents.
MAX_AT_ONCE = 32
# After so many transitions of one command steps are requested from their agents, far below MAX_TRANSITIONS, which
# fails the ceremony.
TRANSITIONS_AT_ONCE = 10
# Answers to one attempt.
MAX_ANSWERS = 1000
# A longer message, comment or reason is cut.
MAX_TEXT_CHARACTERS = 2000
# A longer foreign id or name is cut.
MAX_ID_CHARACTERS = 256
# An error code of a full row is cut to so many bytes, never below.
MIN_CODE_BYTES = 32
# Bytes of the field names of one agent's answer in a row.
ANSWER_FRAME_BYTES = 96
# Case-folding makes of one character three at most.
MAX_ACTOR_KEY_CHARACTERS = 3 * MAX_ID_CHARACTERS

# A value of at most so many bytes cannot nest deeper than half of them.
_SMALL = 256
_SCALARS, _CONTAINERS = frozenset({str, int, float, bool, type(None)}), frozenset({dict, list, tuple})
_encode = msgspec.json.Encoder().encode


class Unfit(CeremonyError):
    """A value from outside cannot be kept; `code` is output_too_large, output_too_deep or output_not_json."""


def weigh(value: Any, claimed: int = 0, noun: str = "the output") -> int:
    """Return the bytes of the value's JSON. Raises Unfit.

    `claimed` is the sender's measure: above the limit the sender has left the value out. Below, it proves nothing.
    """
    if claimed > MAX_OUTPUT_BYTES:
        raise Unfit("output_too_large", f"{noun} has {claimed} bytes, at most {MAX_OUTPUT_BYTES} are kept")
    try:
        encoded = _encode(value)
    except RecursionError:
        raise Unfit("output_too_deep", f"{noun} nests deeper than {MAX_OUTPUT_DEPTH} containers") from None
    except (TypeError, ValueError, OverflowError):
        raise Unfit("output_not_json", f"{noun} is not a JSON value") from None
    size = len(encoded)
    if size > MAX_OUTPUT_BYTES:
        raise Unfit("output_too_large", f"{noun} has {size} bytes, at most {MAX_OUTPUT_BYTES} are kept")
    if size > _SMALL and deeper_than(value, MAX_OUTPUT_DEPTH, encoded):
        raise Unfit("output_too_deep", f"{noun} nests deeper than {MAX_OUTPUT_DEPTH} containers")
    return size


def deeper_than(value: Any, limit: int, encoded: bytes = b"") -> bool:
    """Return whether containers nest deeper than `limit`, without recursion and without looking deeper.

    Where the value's JSON is at hand, it shows at once that there are too few containers: most values end there.
    """
    if encoded and encoded.count(b"[") + encoded.count(b"{") <= limit:
        return False
    containers = [value] if type(value) in _CONTAINERS else []
    for _ in range(limit):
        if _SCALARS.issuperset(map(type, _items(containers))):
            return False
        containers = [item for item in _items(containers) if type(item) in _CONTAINERS]
    return bool(containers)


def _items(containers: Iterable[Any]) -> Iterator[Any]:
    return chain.from_iterable(each.values() if type(each) is dict else each for each in containers)


def clip(text: str, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Cut a foreign text to the length that a row keeps.

    Raises TypeError when it is no text, UnicodeEncodeError when it has no UTF-8 form.
    """
    if type(text) is not str:
        raise TypeError(f"a text was expected, not {type(text).__name__}")
    if not text.isascii():
        text.encode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def text_size(text: str) -> int:
    """Return the bytes of a text as JSON writes it, with its quotes; an empty text is not written."""
    return len(_encode(text)) if text else 0


def encoded_size(value: Any) -> int:
    """Return the bytes of a value as JSON writes it."""
    return len(_encode(value))


def clip_bytes(text: str, most: int) -> str:
    """Cut a text so that JSON writes at most so many bytes of it, with its quotes; below 2 nothing is left."""
    if text_size(text) <= most:
        return text
    fitting = bisect_right(range(len(text)), most - len("…".encode()), key=lambda length: len(_encode(text[:length])))
    return text[: fitting - 1] + "…" if fitting > 1 else ""
