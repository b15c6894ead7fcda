"""The file of the embedded log: its schema, its one owner, and the SQL of commit windows and reads.

Everything here is synchronous and uses no event loop. One connection writes, another reads: in WAL mode a reader never
waits for the writer, so records can be read while a thread commits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ports.log import Fenced, Header, LogFailed, Record, TopicSpec
from streams.transport.partition.backend import PositionRow
from streams.transport.sqlite.place import LogPlace

# `PRAGMA user_version` of the files written here; a file with a higher version is refused.
FORMAT = 2
# `PRAGMA application_id`, so that a foreign SQLite file is never taken for a log.
APPLICATION = 0x43455245
# One read takes batches from the file up to this size.
READ_BYTES = 1024 * 1024
# Time a statement waits for another process that has locked the file.
BUSY_SECONDS = 5.0

SCHEMA = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE topics(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL,
    retention_ms INTEGER NOT NULL, compacted INTEGER NOT NULL, queue INTEGER NOT NULL);
CREATE TABLE ends(
    topic INTEGER, partition INTEGER, start INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY(topic, partition)) WITHOUT ROWID;
CREATE TABLE batches(
    topic INTEGER, partition INTEGER, first INTEGER, next INTEGER NOT NULL, timestamp INTEGER NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY(topic, partition, first));
CREATE TABLE rows(
    topic INTEGER, partition INTEGER, key BLOB, offset INTEGER NOT NULL, timestamp INTEGER NOT NULL, value BLOB,
    PRIMARY KEY(topic, partition, key));
CREATE UNIQUE INDEX rows_by_offset ON rows(topic, partition, offset);
CREATE INDEX tombstones ON rows(timestamp) WHERE value IS NULL;
CREATE TABLE positions(
    reader TEXT, topic INTEGER, partition INTEGER, next INTEGER NOT NULL, partitions INTEGER NOT NULL,
    timestamp INTEGER NOT NULL, checksum INTEGER NOT NULL, fold INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY(reader, topic, partition)) WITHOUT ROWID;
CREATE TABLE offsets(
    reader TEXT, topic INTEGER, partition INTEGER, next INTEGER NOT NULL,
    PRIMARY KEY(reader, topic, partition)) WITHOUT ROWID;
INSERT INTO meta VALUES('epoch', 0), ('timestamp', 0);
"""
# Makes a file of format 1, which release 0.1.0 wrote, one of format 2, which that release refuses.
FROM_FORMAT_1 = "ALTER TABLE positions ADD COLUMN fold INTEGER NOT NULL DEFAULT 0;"
# Tables added to this format later; an older release reads and writes files without them.
ADDED = """
CREATE TABLE IF NOT EXISTS notes(
    reader TEXT, topic INTEGER, partition INTEGER, note TEXT NOT NULL,
    PRIMARY KEY(reader, topic, partition)) WITHOUT ROWID;
"""

Stored = tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]
_decode = msgspec.msgpack.Decoder(list[Stored]).decode
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class StoredTopic:
    """A topic of the file; `id` stands for its name in the other tables."""

    id: int
    spec: TopicSpec


@dataclass(slots=True)
class Transaction:
    """The writes of one commit window, as parameters of the statements."""

    timestamp: int
    """The log's clock at the end of the window, in milliseconds."""
    batches: list[tuple[int, int, int, int, int, bytes]] = field(default_factory=list)
    """topic, partition, first offset, offset after the last, timestamp of the last, encoded records."""
    ends: list[tuple[int, int, int, int]] = field(default_factory=list)
    """topic, partition, log start, log end."""
    rows: list[tuple[int, int, bytes, int, int, bytes | None]] = field(default_factory=list)
    """topic, partition, key, offset, timestamp, value (None: a tombstone)."""
    positions: list[tuple[str, int, int, int, int, int, int, int]] = field(default_factory=list)
    """reader, topic, partition, and the fields of PositionRow."""
    offsets: list[tuple[str, int, int, int]] = field(default_factory=list)
    """reader, topic, partition, offset of the next record to be read."""
    notes: list[tuple[str, int, int, str]] = field(default_factory=list)
    """reader, topic, partition, the reader's note with its offset."""
    trims: list[tuple[int, int, int]] = field(default_factory=list)
    """topic, partition, the new log start: whole batches below it are deleted."""
    tombstones: list[tuple[int]] = field(default_factory=list)
    """Tombstones of compacted topics that are older than this timestamp are deleted."""


UPSERT = (
    "INSERT INTO rows VALUES(?,?,?,?,?,?) ON CONFLICT(topic, partition, key) DO UPDATE"
    " SET offset=excluded.offset, timestamp=excluded.timestamp, value=excluded.value"
)
# Fields of a Transaction, each with the statement that writes it.
STATEMENTS: Sequence[tuple[str, str]] = (
    ("batches", "INSERT INTO batches VALUES(?,?,?,?,?,?)"),
    ("ends", "INSERT OR REPLACE INTO ends VALUES(?,?,?,?)"),
    ("rows", UPSERT),
    ("positions", "INSERT OR REPLACE INTO positions VALUES(?,?,?,?,?,?,?,?)"),
    ("offsets", "INSERT OR REPLACE INTO offsets VALUES(?,?,?,?)"),
    ("notes", "INSERT OR REPLACE INTO notes VALUES(?,?,?,?)"),
    ("trims", "DELETE FROM batches WHERE topic=? AND partition=? AND next<=?"),
    ("tombstones", "DELETE FROM rows WHERE value IS NULL AND timestamp<?"),
)


def encode_batch(records: Sequence[Record]) -> bytes:
    """Encode records of one partition as the body of a batch."""
    return _encode([record[2:] for record in records])


class LogFile:
    """One SQLite file and the right to write to it.

    A lock on `<file>.lock` keeps a second process out (LogInUse), see `LogPlace`. Opening with `take_over` succeeds all
    the same and fences the former owner: each opening raises the epoch in the file, and each transaction checks it.
    """

    def __init__(self, path: Path, *, synchronous: str = "normal", take_over: bool = False) -> None:
        self.place = LogPlace(path, take_over=take_over)
        self.path = self.place.path
        self._committing = 0
        """The log's time of the open transaction."""
        try:
            self._writer = self._connect()
            self._prepare(synchronous)
            self._reader = self._connect()
            self.epoch = self._raise_epoch()
            self.place.opened(self.epoch, self.timestamp())
        except BaseException:
            self.place.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        try:
            return sqlite3.connect(
                self.path,
                isolation_level=None,
                check_same_thread=False,
                timeout=BUSY_SECONDS,
            )
        except sqlite3.Error as error:
            raise LogFailed("log_unreadable", f"{self.path} cannot be opened ({error})") from error

    def _prepare(self, synchronous: str) -> None:
        """Check that the file is a log, create the schema of a new one, and set `synchronous`."""
        if synchronous not in ("normal", "full"):
            raise LogFailed("log_setting", f"synchronous={synchronous} of {self.path} must be normal or full")
        with self._final():
            (version,) = self._writer.execute("PRAGMA user_version").fetchone()
            (tables,) = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (application,) = self._writer.execute("PRAGMA application_id").fetchone()
        if tables and application != APPLICATION:
            raise LogFailed(
                "log_foreign",
                f"{self.path} is a SQLite file, but not a log of this engine",
                remedy="name another file",
            )
        if version > FORMAT:
            raise LogFailed(
                "log_format",
                f"{self.path} has format {version}, this release reads up to {FORMAT}",
                remedy="use a newer release",
            )
        with self._final():
            self._writer.execute("PRAGMA journal_mode=WAL")
            self._writer.execute(f"PRAGMA synchronous={synchronous}")
            self._writer.execute("PRAGMA wal_autocheckpoint=4000")
            if not tables:
                self._writer.executescript(
                    f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id={APPLICATION};"
                    f" PRAGMA user_version={FORMAT}; COMMIT;"
                )
            elif version < FORMAT:
                self._writer.executescript(f"BEGIN IMMEDIATE; {FROM_FORMAT_1} PRAGMA user_version={FORMAT}; COMMIT;")
            self._writer.executescript(ADDED)

    def _raise_epoch(self) -> int:
        with self._final():
            self._writer.execute("UPDATE meta SET value=value+1 WHERE name='epoch'")
            epoch = int(self._writer.execute("SELECT value FROM meta WHERE name='epoch'").fetchone()[0])
            # To the disk before it is noted beside the file: after a power cut the file must not be older.
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)")
            return epoch

    def _final(self) -> _Final:
        return _Final(self.path)

    # -- writing

    def begin(self, transaction: Transaction) -> None:
        """Put a whole window into an open transaction. Raises Fenced, LogFailed, after which no transaction is open."""
        self.place.check()
        try:
            with self._final():
                self._writer.execute("BEGIN IMMEDIATE")
                self._check_epoch()
                self.place.take_lock()
                self._committing = transaction.timestamp
                for name, statement in STATEMENTS:
                    if parameters := getattr(transaction, name):
                        self._writer.executemany(statement, parameters)
                self._writer.execute(
                    "UPDATE meta SET value=? WHERE name='timestamp'",
                    (transaction.timestamp,),
                )
        except BaseException:
            self._roll_back()
            raise

    def commit(self) -> None:
        """Commit the open transaction. Blocks on the disk, so it is called in a thread. Raises LogFailed."""
        try:
            with self._final():
                self._writer.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self.place.check()  # a file that is gone has not kept this window
        self.place.committed(self._committing)

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _check_epoch(self) -> None:
        (epoch,) = self._writer.execute("SELECT value FROM meta WHERE name='epoch'").fetchone()
        if epoch != self.epoch:
            text = f"another process has taken over {self.path} (epoch {epoch}, ours {self.epoch})"
            raise Fenced("log_fenced", text)

    def create(self, specs: Iterable[TopicSpec]) -> None:
        """Add topics, and update the settings of existing ones."""
        self.begin(Transaction(self.timestamp()))
        try:
            with self._final():
                self._writer.executemany(
                    "INSERT INTO topics(name, partitions, retention_ms, compacted, queue) VALUES(?,?,?,?,?) ON CONFLICT"
                    " DO UPDATE SET retention_ms=excluded.retention_ms, queue=excluded.queue",
                    [(s.name, s.partitions, s.retention_ms, s.compacted, s.queue) for s in specs],
                )
        except BaseException:
            self._roll_back()
            raise
        self.commit()

    # -- reading

    def _select(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._final():
            return self._reader.execute(statement, parameters).fetchall()

    def timestamp(self) -> int:
        """Return the log's clock as last committed, in milliseconds."""
        return int(self._select("SELECT value FROM meta WHERE name='timestamp'")[0][0])

    def topics(self) -> list[StoredTopic]:
        rows = self._select("SELECT id, name, partitions, retention_ms, compacted, queue FROM topics")
        return [StoredTopic(i, TopicSpec(n, p, r, compacted=bool(c), queue=bool(q))) for i, n, p, r, c, q in rows]

    def ends(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Return (start, end) by (topic id, partition), for partitions that ever had a record."""
        return {(t, p): (s, n) for t, p, s, n in self._select("SELECT topic, partition, start, next FROM ends")}

    def offsets(self) -> dict[tuple[str, int, int], int]:
        """Return committed offsets by (reader, topic id, partition)."""
        return {(r, t, p): n for r, t, p, n in self._select("SELECT reader, topic, partition, next FROM offsets")}

    def note(self, reader: str, topic: StoredTopic, partition: int) -> str:
        """Return a reader's note with its committed offset."""
        found = self._select(
            "SELECT note FROM notes WHERE reader=? AND topic=? AND partition=?", (reader, topic.id, partition)
        )
        return str(found[0][0]) if found else ""

    def positions(self) -> dict[tuple[str, int, int], PositionRow]:
        """Return position rows by (reader, topic id, partition)."""
        return {(r, t, p): PositionRow(*rest) for r, t, p, *rest in self._select("SELECT * FROM positions")}

    def rows(self, topic: StoredTopic, partition: int) -> Iterator[dict[bytes, bytes]]:
        """Iterate over a table's rows in a partition, by key, about READ_BYTES at a time; keeps no statement open."""
        first = b""
        while found := self._some_rows(topic, partition, first):
            yield found
            first = next(reversed(found)) + b"\0"

    def _some_rows(self, topic: StoredTopic, partition: int, first: bytes) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        size = 0
        with self._final():
            for key, value in self._reader.execute(
                "SELECT key, value FROM rows"
                " WHERE topic=? AND partition=? AND key>=? AND value IS NOT NULL ORDER BY key",
                (topic.id, partition, first),
            ):
                found[key] = value
                size += len(key) + len(value)
                if size >= READ_BYTES:
                    break
        return found

    def read(self, topic: StoredTopic, partition: int, start: int, end: int) -> list[Record]:
        """Return records of [start, end) in order, about READ_BYTES of them; empty when there is none."""
        if topic.spec.compacted:
            return self._read_rows(topic, partition, start, end)
        found: list[Record] = []
        size = 0
        name = topic.spec.name
        with self._final():
            for (body,) in self._reader.execute(
                "SELECT body FROM batches WHERE topic=? AND partition=? AND next>? AND first<? ORDER BY first",
                (topic.id, partition, start, end),
            ):
                found += [Record(name, partition, *stored) for stored in _decode(body) if start <= stored[0] < end]
                size += len(body)
                if size >= READ_BYTES:
                    break
        return found

    def _read_rows(self, topic: StoredTopic, partition: int, start: int, end: int) -> list[Record]:
        found: list[Record] = []
        size = 0
        no_headers: Sequence[Header] = ()
        with self._final():
            for offset, timestamp, key, value in self._reader.execute(
                "SELECT offset, timestamp, key, value FROM rows"
                " WHERE topic=? AND partition=? AND offset>=? AND offset<? ORDER BY offset",
                (topic.id, partition, start, end),
            ):
                found.append(
                    Record(
                        topic.spec.name,
                        partition,
                        offset,
                        timestamp,
                        key,
                        value,
                        no_headers,
                    )
                )
                size += len(key) + len(value or b"")
                if size >= READ_BYTES:
                    break
        return found

    def expired(self, topic: StoredTopic, partition: int, before: int) -> int | None:
        """Return the offset after the last batch that is wholly older than this timestamp, or None."""
        found: int | None = None
        with self._final():
            for following, timestamp in self._reader.execute(
                "SELECT next, timestamp FROM batches WHERE topic=? AND partition=? ORDER BY first",
                (topic.id, partition),
            ):
                if timestamp >= before:
                    break  # timestamps never decrease, so expired batches come first
                found = following
        return found

    def offset_at(self, topic: StoredTopic, partition: int, timestamp: int, start: int, end: int) -> int:
        """Return the offset of the first record of [start, end) at this time or later, or `end`.

        Times never decrease, so the batch is found by halving the range: few rows are looked at.
        """
        low, high, batch_end = start, end, end
        while low < high:
            middle = (low + high) // 2
            first, following, newest = self._batch_at(topic, partition, middle)
            if following <= middle or newest < timestamp:
                low = max(following, middle + 1)
            else:
                high, batch_end = max(first, low), following
        found = self.read(topic, partition, high, min(batch_end, end))
        return next((record.offset for record in found if record.timestamp >= timestamp), high)

    def _batch_at(self, topic: StoredTopic, partition: int, offset: int) -> tuple[int, int, int]:
        """Return first offset, offset after the last, and newest time of the batch with this offset, or before it."""
        with self._final():
            row = self._reader.execute(
                "SELECT first, next, timestamp FROM batches WHERE topic=? AND partition=? AND first<=?"
                " ORDER BY first DESC LIMIT 1",
                (topic.id, partition, offset),
            ).fetchone()
        return (0, 0, 0) if row is None else (int(row[0]), int(row[1]), int(row[2]))

    def close(self) -> None:
        """Close the file; uncommitted writes are lost."""
        self._roll_back()
        self._reader.close()
        self._writer.close()
        self.place.close()


class _Final:
    """Turns an error of SQLite into LogFailed, as a retry would not help."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise LogFailed(
                "log_in_use",
                f"{self.path} has been locked by another process for {BUSY_SECONDS:g} s, in the midst of a write:"
                " that process hangs or is stopped",
                remedy="end it, and start again",
            ) from error
        if isinstance(error, sqlite3.Error):
            raise LogFailed(
                "log_io",
                f"{self.path} cannot be read or written ({error})",
                remedy="nothing of this window is kept: look at the disk's space and health, and at the limit on file"
                " sizes (ulimit -f), then start again",
            ) from error
