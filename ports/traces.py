"""Trace contexts (W3C Trace Context) and their derived ids.

Ids are derived from the ceremony, never drawn: every worker finds the same ones, also after a crash and days later.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_SAMPLED = 1
# Characters of a value of version 00; one of a later version may be longer.
LONGEST_TRACEPARENT = 512


class TraceContext(NamedTuple):
    """One span, as others refer to it."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def child(self, name: str) -> TraceContext:
        """Return the context of a span below this one; the same name always gives the same span."""
        digest = hashlib.blake2b(f"{self.trace_id}{self.span_id}/{name}".encode(), digest_size=_SPAN_ID_BYTES)
        return TraceContext(self.trace_id, digest.hexdigest(), self.sampled)


def parse_traceparent(text: str) -> TraceContext | None:
    """Return the context in a `traceparent`; None for one that the standard tells us to ignore."""
    found = _TRACEPARENT.fullmatch(text) if len(text) <= LONGEST_TRACEPARENT else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def derived_context(instance_id: str, created_at: int, *, sampled: bool) -> TraceContext:
    """Return the context of a ceremony whose caller gave none."""
    digest = hashlib.blake2b(f"{instance_id}/{created_at}".encode(), digest_size=_TRACE_ID_BYTES + _SPAN_ID_BYTES)
    text = digest.hexdigest()
    return TraceContext(text[: 2 * _TRACE_ID_BYTES], text[2 * _TRACE_ID_BYTES :], sampled)
