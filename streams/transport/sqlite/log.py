"""The embedded log: partitions in memory in front of one SQLite file, and commit windows between the two.

An appended record gets its offset and timestamp at once, and readers that run ahead may read it at once. Its window is
committed a little later as one transaction, with every row, position and offset handed over until then. So a crash
loses a suffix of everything at once, and no surviving write depends on a lost one. The event loop only fills the
transaction in memory; COMMIT, which may wait for the disk, runs in a thread, and later writes form the next window.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ports.clock import Clock
from ports.log import Handle, Header, LogFailed, LogUnavailable, LogWarning, Position, Record, Taken, TopicSpec
from streams.transport.partition.backend import NewRecord, PositionRow
from streams.transport.partition.batch import record_size
from streams.transport.partition.partitioner import partition_of
from streams.transport.sqlite.clock import AppendClock
from streams.transport.sqlite.file import LogFile
from streams.transport.sqlite.follower import SqliteFollower
from streams.transport.sqlite.shard import Shard, ShardReader, fail, wake
from streams.transport.sqlite.window import CommitWindow, ReaderPositions

# Length of a commit window, counted from the last commit.
WINDOW_SECONDS = 0.002
# Interval for deleting consumed queue records and expired records.
RETENTION_SECONDS = 1.0
# Time a deleted row stays visible to readers of a changelog.
TOMBSTONE_MS = 24 * 3600 * 1000


class SqliteLog:
    """Implements `Log` on one SQLite file, with further operations for the backends of the embedded driver.

    Fail-stop: after a failed write nothing is written or read any more, `state` tells the reason, every waiting caller
    gets LogFailed (or Fenced), and `on_failure` is called once.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        synchronous: str = "normal",
        window: float = WINDOW_SECONDS,
        retention_seconds: float = RETENTION_SECONDS,
        take_over: bool = False,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._synchronous = synchronous
        self._window_seconds = window
        self._retention_seconds = retention_seconds
        self._take_over = take_over
        self.on_failure = on_failure
        self._file: LogFile | None = None
        self._failure: LogFailed | None = None
        self._shards: dict[str, list[Shard]] = {}
        self._progress = ReaderPositions()
        self._positions: dict[tuple[str, int, int], PositionRow] = {}
        self.owners: dict[tuple[str, str, int], object] = {}
        """The backend that took a partition last, by reader, topic and partition."""
        self._window = CommitWindow()
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._followers: set[SqliteFollower] = set()
        self._log_clock = AppendClock(clock, 0)

    # -- life cycle

    async def start(self) -> None:
        """Open the file and load its ends and positions. Raises LogInUse, LogFailed."""
        if self._file is not None:
            return
        file = LogFile(self._path, synchronous=self._synchronous, take_over=self._take_over)
        try:
            self._load(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-commit")
        self._tasks = [
            self._clock.spawn(self._commits(), name="log-commits"),
            self._clock.spawn(self._enforce_retention_often(), name="log-retention"),
        ]

    def _load(self, file: LogFile) -> None:
        self._log_clock = AppendClock(self._clock, file.timestamp())
        self._positions = file.positions()
        for reader, row in self._positions.items():
            self._progress.set(*reader, row.next)
        for reader, offset in file.offsets().items():
            self._progress.set(*reader, offset)
        self._load_topics(file)

    def _load_topics(self, file: LogFile) -> None:
        ends = file.ends()
        for topic in file.topics():
            known = self._shards.setdefault(topic.spec.name, [])
            for shard in known:
                shard.topic = topic
            for number in range(len(known), topic.spec.partitions):
                known.append(Shard(topic, number, *ends.get((topic.id, number), (0, 0))))

    async def stop(self) -> None:
        """Commit everything and close the file."""
        for follower in self._followers:
            await follower.stop()
        self._followers.clear()
        if self._file is None or self._thread is None:
            return
        try:
            if self._failure is None:
                await self.flush()
        finally:
            for task in self._tasks:
                task.cancel()
            async with self._writing:
                file, self._file = self._file, None
                self._thread.shutdown()
                file.close()
            self._stop_readers(LogUnavailable("log_stopped", "the embedded log has been stopped"))

    def _stop_readers(self, error: Exception) -> None:
        for shards in self._shards.values():
            for shard in shards:
                for future in (*shard.ahead, *shard.behind):
                    fail(future, error)
                shard.ahead.clear()
                shard.behind.clear()

    @property
    def file(self) -> LogFile:
        if self._file is None:
            raise LogUnavailable("log_stopped", "the embedded log is not open")
        return self._file

    def check(self) -> LogFile:
        """Return the open file. Raises the failure that ended this log, if any."""
        if self._failure is not None:
            raise self._failure
        return self.file

    @property
    def state(self) -> str:
        if self._failure is not None:
            return str(self._failure)
        return "ok" if self._file is not None else "log_stopped: the embedded log is not open"

    @property
    def warnings(self) -> Sequence[LogWarning]:
        return ()

    # -- topics

    def partition_of(self, key: bytes, partitions: int) -> int:
        """Return the partition of a key, as Kafka's default partitioner does."""
        return partition_of(key, partitions)

    async def create(self, topics: Sequence[TopicSpec]) -> None:
        """Create missing topics. Raises LogFailed if a topic has another number of partitions."""
        self.check()
        for spec in topics:
            there = self._shards.get(spec.name)
            if there and len(there) != spec.partitions:
                raise LogFailed(
                    "partition_count",
                    f"topic {spec.name} of {self._path} has {len(there)} partitions, not {spec.partitions}",
                    remedy="set the partition count back, or start with a new file",
                )
        async with self._writing:
            self.file.create(topics)
            self._load_topics(self.file)

    async def has(self, topic: str) -> bool:
        self.check()
        return topic in self._shards

    def shards(self, topic: str) -> list[Shard]:
        """Return the partitions of a topic. Raises LogFailed for a topic that was not created."""
        try:
            return self._shards[topic]
        except KeyError:
            text = f"{self._path} has no topic {topic}; topics are created at start"
            raise LogFailed("topic_missing", text) from None

    def shard(self, topic: str, partition: int) -> Shard:
        shards = self.shards(topic)
        if not 0 <= partition < len(shards):
            text = f"topic {topic} has partitions 0 to {len(shards) - 1}, not {partition}"
            raise LogFailed("partition_missing", text)
        return shards[partition]

    def reader(self, topic: str, partition: int, *, committed_only: bool) -> ShardReader:
        return ShardReader(self.shard(topic, partition), self.check, committed_only=committed_only)

    # -- writing: everything here goes into the next transaction

    def put(self, topic: str, partition: int, records: Sequence[NewRecord]) -> None:
        """Append without waiting. Raises RecordTooLarge, without appending any record, and LogFailed."""
        self.check()
        shard = self.shard(topic, partition)
        for key, value, headers in records:
            record_size(topic, key, value, headers)
        if shard.topic.spec.compacted:
            self.put_rows(topic, partition, {key or b"": value for key, value, _ in records})
            return
        now = shard.newest = self._log_clock.now()
        for key, value, headers in records:
            shard.append(Record(topic, partition, shard.end, now, key, value, tuple(headers)))
        self._touch(shard)

    def put_rows(self, topic: str, partition: int, rows: Mapping[bytes, bytes | None]) -> None:
        """Set rows of a compacted topic (None deletes); each gets the offset it would have in a changelog."""
        self.check()
        shard = self.shard(topic, partition)
        now = self._log_clock.now()
        for key, value in rows.items():
            record_size(topic, key, value or b"", ())
        shard.newest = now
        for key, value in rows.items():
            self._window.rows[shard.topic.id, partition, key] = (shard.end, now, value)
            shard.end += 1
        self._touch(shard)

    def put_position(self, reader: str, topic: str, partition: int, position: PositionRow) -> None:
        """Set the position row of a stateful reader."""
        self.check()
        self._window.positions[reader, self.shard(topic, partition).topic.id, partition] = position
        self._dirty.set()

    def put_offset(self, reader: str, topic: str, partition: int, offset: int, note: str | None = None) -> None:
        """Set the committed offset of a reader, with its note."""
        self.check()
        key = (reader, self.shard(topic, partition).topic.id, partition)
        self._window.offsets[key] = offset
        if note is not None:
            self._window.notes[key] = note
        self._dirty.set()

    def _touch(self, shard: Shard) -> None:
        self._window.shards[shard] = None
        self._dirty.set()

    def next_commit(self) -> asyncio.Future[None]:
        """Return a future that is done when all writes so far are committed; it fails with LogFailed or Fenced."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            fail(future, self._failure)
        else:
            self._window.waiting.append(future)
            self._dirty.set()
        return future

    async def flush(self) -> None:
        """Wait until all writes so far are committed."""
        await self.next_commit()

    async def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes,
        headers: Sequence[Header] = (),
    ) -> Position:
        """Durable when it returns. Raises LogUnavailable, RecordTooLarge, LogFailed."""
        self.put(topic, partition, [NewRecord(key, value, headers)])
        shard = self.shard(topic, partition)
        position = Position(partition, shard.end - 1, shard.newest)
        await self.next_commit()
        return position

    # -- the commit

    async def _commits(self) -> None:
        ended = self._clock.monotonic() - self._window_seconds
        while True:
            await self._dirty.wait()
            # Counted from the last commit, so that an idle log commits at once.
            await self._clock.sleep(max(0.0, ended + self._window_seconds - self._clock.monotonic()))
            async with self._writing:
                await self._commit()
            ended = self._clock.monotonic()

    async def _commit(self) -> None:
        self._dirty.clear()
        window, self._window = self._window, CommitWindow()
        if self._failure is not None:
            return
        try:
            transaction, ends = window.cut(self._progress, self._log_clock.now())
            self.file.begin(transaction)
            await asyncio.get_running_loop().run_in_executor(self._thread, self.file.commit)
        except Exception as error:  # noqa: BLE001 a window that is not committed must end the log, whatever the reason
            self._fail(error, window)
            return
        self._positions.update(window.positions)
        for shard, end in ends:
            shard.mark_durable(end)
        wake(window.waiting)

    def crash(self, error: Exception) -> None:
        """Report an error that ends the worker."""
        if self.on_failure is not None:
            self.on_failure(error)

    def _fail(self, cause: Exception, window: CommitWindow) -> None:
        unknown = LogFailed("log_failed", f"{self._path} cannot take a window")
        error = cause if isinstance(cause, LogFailed) else unknown
        error.__cause__ = error.__cause__ or (cause if cause is not error else None)
        self._failure = error
        for future in (*window.waiting, *self._window.waiting):
            fail(future, error)
        self._stop_readers(error)
        self.crash(error)

    # -- retention

    async def _enforce_retention_often(self) -> None:
        while self._failure is None:
            await self._clock.sleep(self._retention_seconds)
            try:
                if self._file is not None:
                    self._file.place.check()  # an idle log notices it too
                self.enforce_retention()
            except LogFailed as error:
                self._fail(error, CommitWindow())

    def enforce_retention(self) -> None:
        """Delete consumed queue records, expired records and old tombstones with the next commits."""
        if self._failure is not None or self._file is None:
            return
        now = self._log_clock.now()
        for shards in self._shards.values():
            for shard in shards:
                low = self._removable(shard, now)
                if low is not None and low > shard.trimmed:
                    self._window.trims[shard] = low
                    self._dirty.set()
        self._window.tombstones = [(now - TOMBSTONE_MS,)]  # with the next commit; an idle log stays idle

    def _removable(self, shard: Shard, now: int) -> int | None:
        spec = shard.topic.spec
        if spec.compacted or shard.trimmed == shard.durable:
            return None
        if spec.queue:
            low = self._progress.consumed(shard)
            return low if low is None else min(low, shard.durable)
        if spec.retention_ms < 0:
            return None
        return self.file.expired(shard.topic, shard.number, now - spec.retention_ms)

    # -- reading

    def register(self, reader: str, topic: str, partition: int) -> int | None:
        """Return the committed offset of a reader; from here on, queue records are kept until it has read them."""
        shard = self.shard(topic, partition)
        committed = self._progress.get(reader, shard)
        if committed is None:
            self._progress.set(reader, shard.topic.id, partition, shard.start)
        return committed

    def note(self, reader: str, topic: str, partition: int) -> str:
        """Return a reader's note with its committed offset; an empty string without one."""
        return self.check().note(reader, self.shard(topic, partition).topic, partition)

    def rows(self, topic: str, partition: int) -> Iterator[dict[bytes, bytes]]:
        """Iterate over committed rows of a compacted topic, by key, about a mebibyte at a time."""
        return self.check().rows(self.shard(topic, partition).topic, partition)

    def position(self, reader: str, topic: str, partition: int) -> PositionRow | None:
        """Return the committed position row of a stateful reader."""
        return self._positions.get((reader, self.shard(topic, partition).topic.id, partition))

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        """Return committed (start, end) by partition."""
        self.check()
        return [(shard.start, shard.durable) for shard in self.shards(topic)]

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """Return the offset of the first committed record that was appended at this time or later, else the end."""
        shard = self.shard(topic, partition)
        return self.check().offset_at(shard.topic, partition, timestamp, shard.start, shard.durable)

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """Iterate over committed records of [start, end), in batches of about a mebibyte."""
        self.check()
        shard = self.shard(topic, partition)
        start, end = max(start, shard.start), min(end, shard.durable)
        while records := self.file.read(shard.topic, partition, start, end):
            yield records
            start = records[-1].offset + 1

    async def follow(
        self,
        group: str,
        topic: str,
        handle: Handle,
        *,
        batch: int = 500,
        taken: Taken | None = None,
    ) -> SqliteFollower:
        """Read committed records from the group's committed offset or the log start; see `Log.follow`."""
        self.check()
        follower = SqliteFollower(self, self._clock, group, topic, handle, batch, taken)
        self._followers.add(follower)
        return follower
