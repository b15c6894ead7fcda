"""The interfaces of the engine for bridges: commands, reads, and the directory of partitions, with their data.

`streams/command_log.py`, `streams/reads.py` and `streams/worker_directory.py` implement them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ports.errors import CeremonyError
from ports.history import HistoryEvent
from ports.log import LogWarning
from streams.log_clock import ClockAhead
from tables.commands import Cancel, GateDecision, Pause, Resume, RetryStep, RunStep, Start, Trigger
from tables.definition import Definition
from tables.diagnosis import CeremonyDiagnosis
from tables.instance import Instance

# Sorts newest first: minus created_at, then the instance id.
SortKey = tuple[int, str]
Operation = Trigger | GateDecision | Cancel | Pause | Resume | RetryStep | RunStep


@dataclass(frozen=True, slots=True)
class Query:
    """Filters of a list, all of which must hold; empty ones match every ceremony."""

    state: str = ""
    definition: str = ""
    story: str = ""
    status: str = ""
    correlation: str = ""
    gate_role: str = ""
    """The role of an open gate or human guard."""
    error_code: str = ""
    """The code of the ceremony or of one of its steps."""
    subject: str = ""
    """The subject of a publish step that was attempted."""
    inputs: Sequence[tuple[str, str]] = ()
    """Names and values of searchable inputs."""
    created_from: int | None = None
    """In milliseconds, inclusive."""
    created_before: int | None = None
    """In milliseconds, exclusive."""
    after: SortKey | None = None
    """Only ceremonies behind this one in the order of a list; they are counted all the same."""


@dataclass(frozen=True, slots=True)
class Matches:
    """The first matches of a query, in order."""

    total: int
    """Number of matches, on any page."""
    exact: bool
    """False: there may be more than `total`."""
    keys: Sequence[SortKey]
    stopped: SortKey | None
    """Matches behind this one were not looked for; None at the end."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The fold's answer to a command. `code` is empty when it was accepted, else stable (`already_exists`, …)."""

    code: str = ""
    message: str = ""
    partition: int = -1
    offset: int = -1
    """Offset of the command in the log."""
    folded: bool = True
    """False: durable, but not folded within the time a call waits."""


class Unavailable(CeremonyError):
    """The log cannot be reached, or the partition of the instance is not served now; the call may be repeated."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0, request_id: str = "") -> None:
        super().__init__("unavailable", message)
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id
        """The id under which the call may be repeated; empty where the message names none."""

    def repeatable_under(self, request_id: str) -> Unavailable:
        """Return this error with the id under which an operation may be repeated, for it may have been recorded."""
        again = f"ask again with request_id {request_id!r}"
        if again in self.message:
            return self
        return Unavailable(f"{self.message}; {again}", self.retry_after_seconds, request_id)


class PartitionDiffers(CeremonyError):
    """The position of a read is of another partition than the instance."""

    def __init__(self, asked: int, home: int) -> None:
        super().__init__("position_differs", f"the position is of partition {asked}, this ceremony lives in {home}")


class Overloaded(CeremonyError):
    """Too many starts wait already; nothing was appended, and the call may be repeated."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__("overloaded", message)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class DeadLetterEntry:
    """One entry of the topic `deadletters`."""

    topic: str
    """The topic or NATS stream of its origin."""
    partition: int
    """0 for a NATS stream."""
    offset: int
    """Offset in the partition, or sequence in the stream."""
    code: str
    message: str
    timestamp: int
    """Append time of the dead letter in milliseconds."""
    size: int
    """Bytes of the original value."""
    key: bytes | None


class HistoryPlace(NamedTuple):
    """The place in a whole history where the next page begins; `HistoryPlace()` is its beginning."""

    offset: int = 0
    """In the partition of `events`."""
    fold: int = -1
    version: int = -1
    ordinal: int = -1
    """The last event before the place, by its effect id."""
    found: bool = False
    """True once an event was found."""
    whole: bool = False
    """True when the first one found was the first of the ceremony, and none is missing since."""
    copied: int = 0
    """Number of the last event that was given from the copy beside the log; 0 for none."""
    joined: bool = False
    """True once the events of the copy have been given, or it could not be asked: the rest is in the log."""

    def passed(self, order: tuple[int, int, int]) -> bool:
        """Return whether an event (fold, version, ordinal) lies before the place: a crash wrote it again."""
        fold, version, ordinal = order
        return fold == self.fold and (version, ordinal) <= (self.version, self.ordinal)

    def after(self, offset: int, order: tuple[int, int, int] | None, *, whole: bool) -> HistoryPlace:
        """Return the place behind an event."""
        fold, version, ordinal = order or (self.fold, self.version, self.ordinal)
        return self._replace(offset=offset, fold=fold, version=version, ordinal=ordinal, found=True, whole=whole)


@dataclass(frozen=True, slots=True)
class History:
    """Events of a ceremony, oldest first: the newest, or one page of all."""

    events: Sequence[HistoryEvent]
    partition: int
    stopped_at: int
    """Offset in the partition of `events`: of the newest events, nothing before it was read or is shown; of a page,
    everything before it was read."""
    complete: bool
    """True when, with all earlier pages, these are all events of the ceremony from its first on."""
    message: str
    next: HistoryPlace | None = None
    """The place of the next page; None on the last one, and with the newest events."""
    span: tuple[int, int] = (0, 0)
    """Offsets between which a whole history lies."""
    cut_off: str = ""
    """Of the newest events: why the log has no older ones; empty where it has, or where they were not looked for."""


@dataclass(frozen=True, slots=True)
class PartitionState:
    """A partition of `commands` as this worker sees it."""

    number: int
    state: str
    """served, recovering, not_served, or elsewhere (owned by another worker, or by none)."""
    code: str = ""
    """The reason why it is not served."""
    message: str = ""
    ceremonies: int = 0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The ceremonies of this worker that are stuck or wait, with counts."""

    at: int
    """Milliseconds of the log's clock."""
    ceremonies: Sequence[CeremonyDiagnosis]
    """Sorted by gravity of the verdict, then by age; of each verdict only the oldest."""
    verdicts: Mapping[str, int]
    statuses: Mapping[str, int]
    partitions: Sequence[PartitionState]
    incomplete: str = ""
    """The part that was not examined, with the reason; empty when everything was."""
    log_warnings: Sequence[LogWarning] = ()
    clock_ahead: ClockAhead | None = None
    """The clock of the log that was found to be ahead lately."""


class Found(NamedTuple):
    """A row that no crash can take back."""

    row: Instance
    position: tuple[int, int]
    """Its partition, and an offset: the row contains every command before it."""


class CommandApi(Protocol):
    """Append a command and wait until it is durable and folded."""

    async def start(self, definition: Definition, start: Start) -> Reply:
        """Durable when it returns, and folded unless `folded` is False.

        Raises Unavailable, Overloaded, RecordTooLarge.
        """

    async def operate(self, command: Operation, traceparent: str = "") -> Reply:
        """Append, wait for the fold, answer from it. Raises Unavailable, which names the id under which to repeat.

        `traceparent`: the caller's, or empty.
        """

    def overload(self, calls: int) -> Overloaded | None:
        """The refusal for every start while `calls` calls are unanswered, each with its own hint; None: starts pass."""


class ReadApi(Protocol):
    """Read rows, events and dead letters. Everything raises Unavailable where the partition is not served here."""

    losses: int
    """Number of partitions that were given up. A row may have other content, though no other version, after a loss."""

    def get(self, instance_id: str) -> Instance | None:
        """The present row. On the embedded log a crash may take it back; answers use `find`."""

    async def find(self, instance_id: str) -> Found | None:
        """The present row once it is committed; None only when no start of it waits to be folded.

        Raises Unavailable where folding takes more than 2 s.
        """

    async def committed(self) -> None:
        """Return once everything that can be read here is committed."""

    def position_of(self, instance_id: str) -> tuple[int, int]:
        """Its partition, and the offset of the next record to be folded: the row contains everything before it."""

    async def reached(self, instance_id: str, partition: int, offset: int) -> None:
        """Return once everything before `offset` is folded. Raises Unavailable where that takes more than 2 s.

        Raises PartitionDiffers where the instance lives in another partition.
        """

    async def search(self, query: Query, most: int, partitions: Collection[int] | None = None) -> Matches:
        """The first `most` ceremonies of these partitions (None: all) that match, newest first.

        Raises Unavailable also while the index of a partition is being built for longer than a call waits.
        """

    def watch(self, instance_id: str) -> AsyncGenerator[Found]:
        """The present row, then each newer version, until the ceremony has ended. Close it to leave."""

    def definition_of(self, instance: Instance) -> Definition | None:
        """The pinned definition."""

    def waiting_for(self, instance: Instance) -> Sequence[str]:
        """The reasons why a live ceremony waits, as lines for people; empty for an ended one."""

    async def dead_letters(self, limit: int, offset: int, topic: str = "") -> tuple[Sequence[DeadLetterEntry], int]:
        """A page of the newest, with the total; `topic`: only letters that came from it."""

    async def dead_letter_counts(self) -> tuple[Mapping[str, int], int]:
        """The newest dead letters by code, and the number of all."""

    async def history(self, instance_id: str, limit: int, place: HistoryPlace | None = None) -> History | None:
        """The newest events of a ceremony, or a page of all from `place` on, at most `limit`; None: it is unknown."""

    async def diagnose(self, instance_id: str = "") -> Diagnosis:
        """One ceremony (an unknown one gives an empty answer), or all of this worker."""


# The address of this worker, as a directory gives it.
HERE = ""


class Directory(Protocol):
    """The worker that serves each partition."""

    partitions: int

    def partition_of(self, instance_id: str) -> int: ...

    def address_of(self, partition: int) -> str:
        """HERE, or the `host:port` of its owner's gRPC. Raises Unavailable while no owner is known."""

    def partitions_by_address(self) -> Mapping[str, Collection[int]]:
        """All partitions by the address that serves them. Raises Unavailable where one has no owner."""

    def addresses(self) -> Collection[str]:
        """Of all other workers with a valid heartbeat."""
