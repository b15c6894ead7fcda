"""The pauses before an attempt is repeated, in milliseconds."""

from __future__ import annotations

import hashlib

from tables.definition import RetryPolicy
from tables.timers import millis

ASK_FIRST_MS, ASK_LONGEST_MS = 1_000, 30_000


def ask_pause(asks: int) -> int:
    """Return the pause before an unreachable neighbour is asked again, after `asks` requests: 1, 2, 4 … 30 s."""
    return min(ASK_FIRST_MS << min(max(asks - 1, 0), 16), ASK_LONGEST_MS)


def retry_pause(policy: RetryPolicy, tries: int, instance_id: str, step_id: str, attempt: int) -> int:
    """Return the pause after the `tries`-th attempt of a budget (specification 11.4).

    `jitter` shortens the pause by up to its fraction, by a hash of (instance, step, attempt). It never lengthens it.
    """
    seconds = float(policy.backoff_seconds)
    if policy.exponential_backoff:
        seconds *= 2.0 ** min(max(tries - 1, 0), 64)
    if policy.max_backoff_seconds is not None:
        seconds = min(seconds, policy.max_backoff_seconds)
    if policy.jitter:
        digest = hashlib.sha256(f"{instance_id}/{step_id}/{attempt}".encode()).digest()
        seconds *= 1.0 - policy.jitter * (int.from_bytes(digest[:8], "big") / 2**64)
    return millis(seconds)
