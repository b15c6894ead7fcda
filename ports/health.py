"""The health of a worker and of its neighbours, as `/readyz`, gRPC health, the doctor and metrics read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

OK = "ok"


class HealthError(NamedTuple):
    """A failure of a neighbour."""

    code: str
    """Stable, lower snake case."""
    message: str
    """One line for people; no raw exception text."""
    at: int
    """Milliseconds since the epoch, when it was first noticed."""


class NeighbourHealth(NamedTuple):
    """The health of one neighbour."""

    code: str
    """`ok`, or a stable code."""
    state: str
    """`ok`, or the trouble in one line for people."""
    since: int
    """Milliseconds since the epoch, when this code was first noticed."""
    latency_ms: float | None = None
    """Duration of the last probe; None where it failed, and for a neighbour that is not probed."""
    last_error: HealthError | None = None
    """Also of a neighbour that is `ok` again."""


class WorkerHealth(Protocol):
    """The health of one worker."""

    @property
    def required(self) -> Sequence[str]:
        """The neighbours that decide readiness."""

    @property
    def status(self) -> str:
        """`ready`, `not ready`, or `draining` once the worker ends."""

    @property
    def is_ready(self) -> bool:
        """Return whether the worker takes new work."""

    @property
    def is_draining(self) -> bool:
        """Return whether the worker ends, and so refuses starts."""

    @property
    def needed_to_start(self) -> Sequence[str]:
        """The neighbours that decide when the worker has started."""

    @property
    def is_started(self) -> bool:
        """Return whether log and tables have been recovered, now or before."""

    def neighbours(self) -> Mapping[str, NeighbourHealth]:
        """Return the health of each neighbour that a role of this worker needs."""

    def warnings(self) -> Sequence[str]:
        """Return shortcomings that do not end readiness."""
