"""What the engine needs of a log: records, batches, tables and the operations beside its agents.

Both drivers (`kafka://`, `sqlite://`) and the in-memory log of the tests fulfil these protocols; nothing outside
`streams/transport/` knows which of them is underneath.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ports.errors import CeremonyError

# One record header: name and value.
Header = tuple[str, bytes]

# Bytes of the largest record a topic takes (`max.message.bytes`).
LARGEST_RECORD_BYTES = 4 * 1024 * 1024
# Bytes of the largest produce batch of more than one record.
LARGEST_BATCH_BYTES = 1024 * 1024


class Record(NamedTuple):
    """One record as it was read. `timestamp` is the log's own append time, in milliseconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header] = ()


class Position(NamedTuple):
    """Where an acknowledged record stands. `timestamp` is the log's append time in milliseconds."""

    partition: int
    offset: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as the engine declares it. `retention_ms` -1 keeps for ever; `compacted` is a changelog.

    `queue`: every reader is one of our agents, so the embedded log may trim what was consumed.
    """

    name: str
    partitions: int
    retention_ms: int = -1
    compacted: bool = False
    queue: bool = False


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A changelog-backed table of one agent. Rows live decoded; `encode` runs once per dirty row and checkpoint.

    Rows are values: what was put is never changed in place, for it is encoded a little after the checkpoint's snapshot.
    `decode` or `encode` raising ends the worker (LogFailed).
    """

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class Held(Protocol):
    """A record a step agent answers later, from a task; until `release` the committed offset stays at or below it."""

    record: Record

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        """Send without waiting; the acknowledgement is awaited before the offset is committed."""

    def release(self) -> None:
        """The record is dealt with."""


class Batch(Protocol):
    """What was fetched of one partition; the value of one event of an agent's stream.

    Nothing it changes is visible before the agent asks for the next batch: that alone is success. If the agent
    raises, the batch is handed over again record by record, and the record that fails alone is dead-lettered.
    """

    partition: int
    note: Any
    """Free for the agent: what it wants to find again in `on_applied`. None at first."""

    def __iter__(self) -> Iterator[Record]: ...
    def __len__(self) -> int: ...

    def get(self, table: str, key: bytes) -> Any | None:
        """The row (decoded object) of a table of this agent in this partition, or None."""

    def put(self, table: str, key: bytes, row: Any | None) -> None:
        """Set the row (None deletes); marked dirty and written by the next checkpoint."""

    def rows_changed(self, table: str) -> Mapping[bytes, Any | None]:
        """What this batch has put into a table, by key; None was deleted."""

    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        """Send without waiting. Default partition: that of the batch. Acknowledged before the next checkpoint ends."""

    def hold(self, record: Record) -> Held:
        """Answer this record later."""

    def dead_letter(self, record: Record, code: str, message: str) -> None:
        """Send the record to the dead letters with origin, code and headers (by reference above 256 KiB); goes on."""


class PartitionView(Protocol):
    """One partition of a stateful agent as its owner sees it from outside the agent (read only)."""

    number: int

    def rows(self, table: str) -> Mapping[bytes, Any]:
        """The present rows, decoded, by key."""

    def scan(
        self,
        table: str,
        decode: Callable[[bytes], Any] | None = None,
        keys: Iterable[bytes] | None = None,
    ) -> Iterator[tuple[bytes, Any]]:
        """Every row, or those of `keys` that there are, one at a time: for readers of many rows, who keep none.

        Each as it is where it is at hand decoded, else what `decode` makes of its bytes; None: the table's own. Unlike
        `rows(table)` it puts nothing in the place of rows in use. It goes on while rows change. Raises LogFailed for a
        row that cannot be read.
        """

    @property
    def position(self) -> int:
        """Offset of the next record to be folded."""

    @property
    def end_at_take_over(self) -> int:
        """Log end of the commands seen when the partition was taken: answers are held back until it is folded."""

    async def folded(self, offset: int) -> None:
        """Return once the record at `offset` is folded. Raises LogUnavailable when the partition is given up before."""

    async def sent(self) -> None:
        """Return once the effects of what is folded are in the log, or have failed to get there."""


@dataclass(slots=True)
class AgentSpec:
    """How an agent is attached: its topic, its tables (none: stateless), its batch size and what it wants to hear."""

    name: str
    topic: str
    tables: Sequence[TableSpec] = ()
    batch: int = 500
    committed_only: bool = False
    """Give it only records whose write is durable: what it does reaches outside (the embedded log may run ahead)."""
    on_taken: Callable[[PartitionView], Awaitable[None]] | None = None
    """Partition recovered, before its first batch."""
    on_applied: Callable[[Batch], None] | None = None
    """A batch's rows have just become visible and its effects were handed to the log; synchronous, must not raise."""
    on_recovered: Callable[[int, float], None] | None = None
    """A partition with tables was taken: rows at hand, and seconds it took, the former owner's fencing too."""
    on_saved: Callable[[int, float], None] | None = None
    """A checkpoint is durable: rows written, and seconds it took, the wait for its effects too."""
    on_lost: Callable[[int], None] | None = None
    """Partition given up (after its last checkpoint) or lost."""
    options: dict[str, Any] = field(default_factory=dict)


class Committed(NamedTuple):
    """What a group had committed of a partition when a follower was given it."""

    partition: int
    offset: int | None
    """Of the first record not dealt with; None where nothing was committed, or nothing that is in the log."""
    note: str
    """What `handle` returned for the records before it."""
    end: int
    """Log end of the partition; what is behind it no former owner can have seen."""


# Deals with one batch; may return a note (at most 4 KiB of UTF-8) to be committed with its offset.
Handle = Callable[[Sequence[Record]], Awaitable[str | None]]
Taken = Callable[[Committed], Awaitable[None]]


class Log(Protocol):
    """The log beside the agents: appending from outside, following for bridges, reading for operators."""

    def partition_of(self, key: bytes, partitions: int) -> int:
        """Partition of a key: murmur2, as Kafka's default partitioner."""

    async def start(self) -> None:
        """Connect; raises LogUnavailable."""

    async def stop(self) -> None: ...

    async def create(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing with its real settings; check partition count and LogAppendTime of what is there."""

    async def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> Position:
        """Durable when it returns (acks=all). Raises LogUnavailable, RecordTooLarge."""

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        """(start, end) offsets of each partition."""

    def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """Records of [start, end), in batches."""

    async def follow(
        self, group: str, topic: str, handle: Handle, *, batch: int = 500, taken: Taken | None = None
    ) -> Follower:
        """Read a topic in a consumer group of its own, from the committed offset or the log start.

        `handle` gets batches of one partition in order; their offset is committed after it returned, with the note that
        it returned. Where a partition moves it may be cancelled after some seconds: the next owner gets the batch. An
        exception ends the worker. `taken` hears of each assignment of a partition before its first batch.
        """

    @property
    def state(self) -> str:
        """`ok`, or what is wrong, for readiness."""


class TailedLog(Log, Protocol):
    """A log that several workers share."""

    def tail(self, topic: str, partition: int, start: int) -> AsyncIterator[Sequence[Record]]:
        """Records from `start` on, without a group and without an end. Raises LogUnavailable."""


class Follower(Protocol):
    @property
    def fresh(self) -> bool:
        """False once another follower of the group may have what is handled here: what reaches outside must wait."""

    async def stop(self) -> None:
        """Finish the batch in hand, commit, leave the group."""


class LogError(CeremonyError):
    """The log cannot be reached, or refuses; base of the errors of this module."""


class LogUnavailable(LogError):
    """The log cannot be reached now; the call may be repeated."""


class LogFailed(LogError):
    """A write was refused for good: the worker stops, it never skips."""


class Fenced(LogFailed):
    """Another owner has taken this partition."""


class StateLost(LogFailed):
    """A local copy of a partition's rows cannot be read or written; the changelog has them all."""

    def __init__(self, message: str, *, place: str = "") -> None:
        super().__init__("state_lost", message, place=place)


class RecordTooLarge(LogError):
    """A record above LARGEST_RECORD_BYTES was refused before it was sent."""

    def __init__(self, message: str) -> None:
        super().__init__("record_too_large", message)


class LogUrlInvalid(LogError):
    """The address of a log is not understood."""

    def __init__(self, message: str) -> None:
        super().__init__("log_url_invalid", message)
