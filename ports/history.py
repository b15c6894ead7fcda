"""Events of ceremonies as histories show them, and the copy of them beside the log that keeps some for longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

LOG = "log"


class HistoryEvent(NamedTuple):
    """One event of a ceremony, as it went to NATS."""

    subject: str
    at: str
    """ISO-8601."""
    effect_id: str
    correlation_id: str
    payload: str
    """JSON."""
    metadata: str
    """JSON: the actor of a transition, with role and reason."""
    partition: int
    command_offset: int
    """Offset of the command that caused it; -1 when its record does not name it."""
    source: str = LOG
    """`log`, or the name of the copy that it comes from."""
    missing_before: str = ""
    """Why events may be missing before this one; empty where none are."""


class CopiedEvent(NamedTuple):
    """One event of a copy."""

    number: int
    """Counted from the first event of its ceremony that the copy ever had, which is 1."""
    event: HistoryEvent
    lost_before: bool = False
    """True where the log had deleted events before the copy could take them; they stood before this one."""


class CopyExtent(NamedTuple):
    """The events that a copy has of one ceremony."""

    first: int
    """Number of the oldest; above 1 where older ones were dropped."""
    last: int
    """Number of the newest; below `first` where it has none."""
    copied_to: int
    """Offset in the partition of `events`: every event before it was copied, or was gone from the log before."""


class HistoryCopy(Protocol):
    """A copy of the events, for those that the log does not have any more. Calls raise Unreachable."""

    name: str
    most: int
    """Events that it keeps of one ceremony: the newest."""

    async def extent(self, instance_id: str, partition: int) -> CopyExtent:
        """Return which events it has; the partition is that of the ceremony."""

    async def events(self, instance_id: str, first: int, last: int) -> Sequence[CopiedEvent]:
        """Return the events with these numbers, oldest first; those that were dropped meanwhile are not among them."""

    async def close(self) -> None: ...
