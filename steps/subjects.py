"""NATS subjects of publish steps: an allowlist decides, and the engine's own subjects are never allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

DEFAULT_ALLOWLIST = ("ceremony.>",)
# The engine's own subjects: subscribers may trust that the engine sent them.
OWN = (
    "ceremony.step.>",
    "ceremony.transition.>",
    "ceremony.publish.>",
    "ceremony.dualwrite.>",
    "ceremony.gate.>",
    "ceremony.start.>",
    "ceremony.started",
    "ceremony.completed",
    "ceremony.failed",
    "ceremony.cancelled",
    "ceremony.timed_out",
    "ceremony.paused",
    "ceremony.resumed",
    "ceremony.deadletter",
)
_PATTERN = re.compile(r"(?:[^\s.*>]+|\*)(?:\.(?:[^\s.*>]+|\*))*(?:\.>)?|>")


def parse_allowlist(text: str) -> tuple[str, ...]:
    """Parse patterns separated by commas, as in `PUBLISH_SUBJECTS`. Raises ValueError for an invalid one."""
    patterns = tuple(pattern.strip() for pattern in text.split(",") if pattern.strip())
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(
                f"`{pattern}` is no NATS subject pattern: tokens separated by dots, `*` for one token, `>` at the end"
            )
    return patterns


def matches(subject: str, pattern: str) -> bool:
    """Match NATS wildcards: `*` is one token, `>` is one or more tokens at the end."""
    tokens, wanted = subject.split("."), pattern.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(tokens) == len(wanted) and all(w in ("*", t) for t, w in zip(tokens, wanted, strict=True))


def own(subject: str) -> bool:
    """Return whether it is one of the engine's own subjects."""
    return any(matches(subject, pattern) for pattern in OWN)


def refusal(subject: str, allowlist: Iterable[str]) -> str:
    """Return why a publish step may not use the subject, or ""."""
    return _refusal(subject, tuple(allowlist))


@lru_cache(maxsize=256)  # definitions name few subjects; each publication asks
def _refusal(subject: str, allowed: tuple[str, ...]) -> str:
    if own(subject):
        return f"`{subject}` belongs to the engine; choose another subject"
    if not any(matches(subject, pattern) for pattern in allowed):
        return f"`{subject}` is not allowed; PUBLISH_SUBJECTS allows {', '.join(allowed) or 'none'}"
    return ""
