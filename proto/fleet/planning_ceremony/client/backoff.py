"""The pauses between the attempts of one call: growing, random, no sooner than the engine asks, within a deadline."""

from __future__ import annotations

import random
import time

from fleet.planning_ceremony.client.errors import PlanningCeremonyError

FIRST_SECONDS, GROWTH, LONGEST_SECONDS = 0.1, 2.0, 2.0
# The least time that an attempt gets, and the least pause before one.
LEAST_SECONDS = 0.05
# The longest timeout of one attempt: gRPC takes no infinite one.
LONGEST_ATTEMPT_SECONDS = 86_400.0
# Doublings after which a pause grows no more.
MOST_DOUBLINGS = 16


def pause_before_next(refused: PlanningCeremonyError, attempts: int, left: float) -> float | None:
    """Seconds until the next attempt after so many; None when repeating is no use, or cannot be done in `left` seconds.

    Pauses are random, so that calls that were refused together are not repeated together. After a hint a pause is 0.5
    to 1.5 of it. Towards the deadline a pause is shortened, so that the last attempt comes just before it.
    """
    if not refused.transient:
        return None
    if refused.retry_after is not None:
        least, pause = refused.retry_after * 0.5, refused.retry_after * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
    else:
        longest = min(FIRST_SECONDS * GROWTH ** min(attempts - 1, MOST_DOUBLINGS), LONGEST_SECONDS)
        least, pause = LEAST_SECONDS, longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    pause = min(pause, left - LEAST_SECONDS)
    return pause if pause >= least else None


class Attempts:
    """The attempts of one blocking call."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds from now for all attempts together."""
        self._deadline = time.monotonic() + timeout
        self._made = 0
        self._last: PlanningCeremonyError | None = None
        """The last refusal of an attempt that could be repeated."""

    @property
    def left(self) -> float:
        """Timeout of the next attempt."""
        return min(max(self._deadline - time.monotonic(), 0.001), LONGEST_ATTEMPT_SECONDS)

    def pause_after(self, refused: PlanningCeremonyError) -> float:
        """Seconds until the next attempt. Raises the refusal when there is none."""
        self._made += 1
        pause = pause_before_next(refused, self._made, self._deadline - time.monotonic())
        if pause is None:
            raise self._reason(refused)
        self._last = refused
        return pause

    def _reason(self, refused: PlanningCeremonyError) -> PlanningCeremonyError:
        """An attempt that the deadline ended says less than the one before it."""
        return self._last if self._last is not None and refused.transient and not refused.from_engine else refused
