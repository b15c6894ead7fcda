"""Watches one neighbour: its state, since when it has it, the duration of the last probe, and the last error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from ports.clock import Clock
from ports.errors import CeremonyError
from ports.health import OK, HealthError, NeighbourHealth

# Deadline of a probe.
PROBE_SECONDS = 2.0
NO_ANSWER, PROBE_FAILED = "no_answer", "probe_failed"

log = structlog.get_logger(__name__)

# Returns code and state of a neighbour; both are `ok` while it is.
Look = Callable[[], tuple[str, str]]
# Asks the neighbour something that it answers at once. Raises CeremonyError.
Ask = Callable[[], Awaitable[object]]


class Neighbour:
    """One neighbour. Without `look` the last probe alone decides about its state."""

    def __init__(self, name: str, clock: Clock, look: Look | None = None, ask: Ask | None = None) -> None:
        self.name = name
        self._clock = clock
        self._look = look or self._answered
        self._ask = ask
        self._answer = ("not_asked", "not asked yet")
        """Code and state of the last probe."""
        self._code = ""
        self._since = 0
        self._latency_ms: float | None = None
        self._last_error: HealthError | None = None
        self._is_over = True
        """Whether all was well since the last error."""

    async def probe(self) -> None:
        """Ask the neighbour, where it can be asked, within PROBE_SECONDS."""
        if self._ask is None:
            return
        begun = self._clock.monotonic()
        try:
            async with self._clock.timeout(PROBE_SECONDS):
                await self._ask()
        except TimeoutError:
            self._failed(NO_ANSWER, f"no answer within {PROBE_SECONDS:g} s")
        except CeremonyError as error:
            self._failed(error.code, error.message)
        except Exception:  # a library's own error must not end the worker
            if self._answer[0] != PROBE_FAILED:
                log.warning("probe_failed", neighbour=self.name, exc_info=True)
            self._failed(PROBE_FAILED, "the probe failed; the worker's log has the reason")
        else:
            self._latency_ms = round((self._clock.monotonic() - begun) * 1000, 1)
            self._answer = (OK, OK)

    def health(self) -> NeighbourHealth:
        """Return the present health; a change of the state is noticed here."""
        code, state = self._look()
        if code != self._code:
            self._code, self._since = code, self._now()
        if code != OK:
            self._note(code, state)
        elif self._ask is None or self._answer[0] == OK:
            self._is_over = True
        return NeighbourHealth(code, state, self._since, self._latency_ms, self._last_error)

    def _answered(self) -> tuple[str, str]:
        return self._answer

    def _failed(self, code: str, message: str) -> None:
        self._latency_ms = None
        self._answer = (code, message)
        self._note(code, message)

    def _note(self, code: str, message: str) -> None:
        """Note an error with the time at which it began. Probe and `look` may word the same one differently."""
        begun, last = self._now(), self._last_error
        if last is not None and last.code == code and not self._is_over:
            begun = last.at
        self._last_error = HealthError(code, message, begun)
        self._is_over = False

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)
