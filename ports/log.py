"""The log, as the engine needs it: records, batches, tables, and the operations beside its agents.

Both drivers (`kafka://`, `sqlite://`) and the in-memory log of the tests implement these protocols; nothing outside
`streams/transport/` knows which one is in use.
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
    """One record read from the log. `timestamp` is the log's own append time, in milliseconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header] = ()


class Position(NamedTuple):
    """Partition and offset of an acknowledged record; `timestamp` is the log's append time in milliseconds."""

    partition: int
    offset: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as the engine declares it. `retention_ms` -1 keeps for ever; `compacted` is a changelog.

    `queue`: every reader is an agent of the engine, so the embedded log may delete consumed records.
    """

    name: str
    partitions: int
    retention_ms: int = -1
    compacted: bool = False
    queue: bool = False


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A changelog-backed table of one agent. Rows live decoded; `encode` runs once per dirty row and checkpoint.

    Rows are values: a row is never changed in place, because it is encoded shortly after the checkpoint's snapshot.
    An exception of `decode` ends the worker (LogFailed), except an Undecodable where there is `unreadable`; so does one
    of `encode` without `substitute`.
    """

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    substitute: Callable[[Any | None, Any, RowUnwritable], tuple[Any, bytes]] | None = None
    """Makes a row for one that cannot be written, of its last written form (None: there is none) and its newest. The
    bytes are a record for the agent's own topic that reports it, under the row's key."""
    unreadable: Callable[[bytes, bytes, CeremonyError], bytes] | None = None
    """Makes a record for the agent's own topic that sets a row aside which cannot be read: of its key, its bytes, and
    the error of `decode`, an Undecodable. The row then counts as absent. Without it such a row is LogFailed, too."""


class LogWarning(NamedTuple):
    """A shortcoming of the log that ends no worker."""

    code: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}; {self.remedy}"


class Held(Protocol):
    """A record answered later, from a task; until its `release` the committed offset does not exceed its offset."""

    record: Record

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        """Send without waiting; the acknowledgement is awaited before the offset is committed."""

    def release(self) -> None:
        """Mark the record as processed."""


class Batch(Protocol):
    """Records fetched from one partition; the value of one event of an agent's stream.

    A batch succeeds when the agent asks for the next one; only then do its changes become visible. If the agent
    raises, the batch is delivered again record by record, and a record that fails alone becomes a dead letter.
    """

    partition: int
    note: Any
    """Free for the agent, which reads it again in `on_applied`. None at first."""

    def __iter__(self) -> Iterator[Record]: ...
    def __len__(self) -> int: ...

    def get(self, table: str, key: bytes) -> Any | None:
        """The row (decoded object) of a table of this agent in this partition, or None."""

    def put(self, table: str, key: bytes, row: Any | None) -> None:
        """Set the row; None deletes it. The next checkpoint writes it."""

    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        """Send without waiting, by default to the batch's partition; the next checkpoint awaits the acknowledgement."""

    def hold(self, record: Record) -> Held:
        """Keep this record, to answer it later."""

    def dead_letter(self, record: Record, code: str, message: str) -> None:
        """Send the record to the dead letters, with origin, code and headers; above 256 KiB only a reference to it."""


class PartitionView(Protocol):
    """One partition of a stateful agent, seen from outside the agent (read only)."""

    number: int

    def rows(self, table: str) -> Mapping[bytes, Any]:
        """The present rows, decoded, by key."""

    def scan(
        self,
        table: str,
        decode: Callable[[bytes], Any] | None = None,
        keys: Iterable[bytes] | None = None,
    ) -> Iterator[tuple[bytes, Any]]:
        """Iterate over all rows, or over those of `keys` that exist, for readers of many rows.

        A row that is not cached is decoded by `decode` (None: the table's own). Unlike `rows(table)`, a scan evicts no
        row from the cache. Rows may change meanwhile. Raises LogFailed for a row that cannot be read.
        """

    @property
    def position(self) -> int:
        """Offset of the next record to be folded."""

    @property
    def end_at_take_over(self) -> int:
        """Log end of the commands at take-over; the partition serves no reads until it has folded up to it."""

    async def folded(self, offset: int) -> None:
        """Return once the record at `offset` is folded. Raises LogUnavailable if the partition is given up first."""

    async def sent(self) -> None:
        """Return once the effects of all folded records are acknowledged by the log, or have failed."""

    async def committed(self, offset: int) -> None:
        """Return once no crash can lose a record below `offset`: then rows that were folded from it may be shown.

        Raises LogFailed.
        """


@dataclass(slots=True)
class AgentSpec:
    """The attachment of an agent: its topic, tables (none: stateless), batch size and callbacks."""

    name: str
    topic: str
    tables: Sequence[TableSpec] = ()
    batch: int = 500
    fold: int = 0
    """Fold number of an agent with tables: a partition that a higher one owned is refused."""
    accepts_newer_fold: bool = False
    """Take such a partition all the same, for going back to an older release."""
    committed_only: bool = False
    """Deliver only durable records, as the agent acts on the outside. Others may read ahead in the embedded log."""
    on_taken: Callable[[PartitionView], Awaitable[None]] | None = None
    """Called when a partition is recovered, before its first batch."""
    on_applied: Callable[[Batch], None] | None = None
    """Called when a batch's rows are visible and its effects are sent; synchronous, and must not raise."""
    on_recovered: Callable[[int, float], None] | None = None
    """Called after a take-over with the number of rows and its seconds, which include fencing the former owner."""
    on_saved: Callable[[int, int, float], None] | None = None
    """Called after a checkpoint with its rows, their bytes, and its seconds, which include the wait for its effects."""
    on_lost: Callable[[int], None] | None = None
    """Called when a partition was given up, after its last checkpoint, or lost."""
    options: dict[str, Any] = field(default_factory=dict)


class Committed(NamedTuple):
    """The committed offset of a partition when a follower gets the partition."""

    partition: int
    offset: int | None
    """Offset of the first unprocessed record; None without a commit, or when the log does not have that offset."""
    note: str
    """The note that `handle` returned for the records before it."""
    end: int
    """Log end of the partition; no former owner can have read a record behind it."""


# Processes one batch; may return a note (at most 4 KiB of UTF-8), which is committed with its offset.
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
        """Create missing topics with their settings; check partition count and LogAppendTime of existing ones."""

    async def has(self, topic: str) -> bool:
        """Return whether a topic exists; looking creates none. Raises LogUnavailable."""

    async def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> Position:
        """Durable when it returns (acks=all). Raises LogUnavailable, RecordTooLarge."""

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        """(start, end) offsets of each partition."""

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """Offset of the first record that was appended at this time (ms) or later; the log end where none was."""

    def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """Records of [start, end), in batches."""

    async def follow(
        self, group: str, topic: str, handle: Handle, *, batch: int = 500, taken: Taken | None = None
    ) -> Follower:
        """Read a topic in a consumer group of its own, from the committed offset or the log start.

        `handle` gets batches of one partition in order; after it returns, their offset is committed with the note it
        returned. When a partition moves, it may be cancelled after some seconds: the next owner gets the batch. An
        exception ends the worker. `taken` is called for each assignment of a partition before its first batch.
        """

    @property
    def state(self) -> str:
        """`ok`, or the problem, for readiness."""

    @property
    def warnings(self) -> Sequence[LogWarning]:
        """Shortcomings with which the log keeps its promises for now, for readiness and the doctor."""


class TailedLog(Log, Protocol):
    """A log that several workers share."""

    def tail(self, topic: str, partition: int, start: int) -> AsyncIterator[Sequence[Record]]:
        """Records from `start` on, without a group and without an end. Raises LogUnavailable."""


class Follower(Protocol):
    @property
    def fresh(self) -> bool:
        """False once another follower may own these partitions; then nothing may be sent to the outside."""

    @property
    def places(self) -> Mapping[int, int]:
        """Offset of the next record to be handled, by assigned partition, as far as it is known."""

    def seek(self, partition: int, offset: int) -> None:
        """Continue a partition at another offset, after the batch in hand; records fetched before are not handled.

        An offset below the log start stands for it. A new assignment begins at the committed offset all the same.
        """

    async def stop(self) -> None:
        """Finish the batch in hand, commit, leave the group."""


class LogError(CeremonyError):
    """The log cannot be reached, or refuses; base of the errors of this module."""


class LogUnavailable(LogError):
    """The log cannot be reached now; the call may be repeated."""


class LogFailed(LogError):
    """A write was refused for good. The worker stops; it never skips a record."""


class Fenced(LogFailed):
    """Another owner has taken this partition."""


class RowUnwritable(LogFailed):
    """A row cannot be encoded, or is larger than a record may be."""


class StateLost(LogFailed):
    """The local copy of a partition's rows cannot be read or written; the changelog still has every row."""

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
