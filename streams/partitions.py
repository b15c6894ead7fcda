"""The partitions of `commands` that this worker owns, their state, and the worker's readiness."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from ports.log import Log, LogWarning, PartitionView
from streams.api import PartitionState, Unavailable
from streams.topics import CEREMONIES
from tables.definition import Definition

# Characters of the longest instance id; a longer one names no instance and is not hashed.
LONGEST_ID = 257


class PinnedRow(Protocol):
    """A row, or a part of one, with the hash of its definition."""

    @property
    def definition_hash(self) -> str: ...


# Returns the definition that a row of this partition is pinned to; None when it cannot be read.
DefinitionLookup = Callable[[PartitionView, PinnedRow], Definition | None]
MOVING = "the partition of this instance is being taken over"
NOT_FRESH = "the group has not confirmed for some seconds that this worker still owns it"


class Partitions:
    """The partitions of one worker. A partition is served once it has folded to the log end seen at take-over.

    `unserved`: partitions that the driver refused to serve, each with a code and a remedy; `held`: the partitions
    assigned to this worker, None while the group rebalances; `fresh`: false once another worker may own them.
    """

    def __init__(
        self,
        log: Log,
        count: int,
        *,
        unserved: Callable[[], Mapping[int, tuple[str, str]]],
        held: Callable[[], Collection[int] | None] | None = None,
        fresh: Callable[[], bool] = lambda: True,
    ) -> None:
        self.count = count
        self._log = log
        self._unserved = unserved
        self._held = held or (lambda: range(count))
        self._fresh = fresh
        self._views: dict[int, PartitionView] = {}

    def taken(self, view: PartitionView) -> None:
        self._views[view.number] = view

    def lost(self, number: int) -> None:
        self._views.pop(number, None)

    def __len__(self) -> int:
        """The number of partitions recovered here, served or not."""
        return len(self._views)

    def mine(self) -> Collection[int]:
        """Partitions assigned to this worker, including any it cannot serve."""
        return self._views.keys() | self._unserved().keys()

    # -- one partition

    def taken_view(self, instance_id: str) -> PartitionView | None:
        """The partition of this instance, also before it is served; None while this worker does not have it."""
        return self._views.get(self._log.partition_of(instance_id.encode(), self.count))

    def of(self, instance_id: str) -> PartitionView:
        """The partition of this instance. Raises Unavailable."""
        return self.view(self.number_of(instance_id))

    def number_of(self, instance_id: str) -> int:
        """The number of the partition of this instance, served here or not."""
        return self._log.partition_of(instance_id.encode(), self.count)

    def view(self, number: int) -> PartitionView:
        """The partition of this number. Raises Unavailable unless it is served here."""
        if not self._serves(number):
            code, text = self._unserved().get(number, ("moving", MOVING))
            raise Unavailable(f"partition {number} is not served: {code}: {text}")
        if not self._fresh():
            raise Unavailable(f"partition {number} is not served: membership_not_confirmed: {NOT_FRESH}")
        return self._views[number]

    def appendable(self, instance_id: str) -> PartitionView:
        """The partition of this instance, to append to it. Raises Unavailable also while the group rebalances."""
        view = self.of(instance_id)
        if self._held() is None:
            raise Unavailable(f"partition {view.number} is not served: moving: {MOVING}")
        return view

    def _serves(self, number: int) -> bool:
        view = self._views.get(number)
        return view is not None and view.position >= view.end_at_take_over

    # -- all of them

    def served(self) -> list[PartitionView]:
        return [view for number, view in self._views.items() if self._serves(number)]

    def positions(self) -> Iterable[tuple[int, int]] | None:
        """(partition, position) of every partition there is; None while another worker owns some of them."""
        if len(self._views) < self.count:
            return None
        return ((number, view.position) for number, view in self._views.items())

    def states(self) -> list[PartitionState]:
        return [self._state(number) for number in range(self.count)]

    def _state(self, number: int) -> PartitionState:
        view = self._views.get(number)
        if unserved := self._unserved().get(number):
            return PartitionState(number, "not_served", *unserved)
        if view is None:
            return PartitionState(number, "elsewhere", message="another worker has it, or nobody has it yet")
        if not self._serves(number):
            left = view.end_at_take_over - view.position
            return PartitionState(number, "recovering", "moving", f"{left} commands are still to be folded")
        return PartitionState(number, "served", ceremonies=len(view.rows(CEREMONIES)))

    def owned_rows(self) -> int:
        """Count the rows of the partitions owned now, for the metric."""
        return sum(len(view.rows(CEREMONIES)) for view in self._views.values())

    def log_warnings(self) -> Sequence[LogWarning]:
        return self._log.warnings

    def readiness(self) -> dict[str, str]:
        """State of `log` and `tables`: `ok`, or the reason why not."""
        return {"log": self._log.state, "tables": self.tables()[1]}

    def tables(self) -> tuple[str, str]:
        """Code and state of the tables: both `ok` once every assigned partition is served."""
        if unserved := self._unserved():
            states = [f"partition {n}: {code}: {text}" for n, (code, text) in sorted(unserved.items())]
            return "partitions_not_served", "; ".join(states)
        held = self._held()
        if held is None:
            return "partitions_moving", "the partitions of this worker are being settled"
        if not self._fresh():
            return "membership_not_confirmed", f"membership not confirmed: {NOT_FRESH}"
        missing = [n for n in held if not self._serves(n)]
        if missing:
            return "partitions_recovering", f"{len(missing)} of {len(held)} partitions not recovered yet"
        return "ok", "ok"
