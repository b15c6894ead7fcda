"""The embedded log: durability, refused files, fencing and retention."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.clock import HostClock
from ports.log import (
    LARGEST_RECORD_BYTES,
    Committed,
    Fenced,
    LogFailed,
    LogUnavailable,
    Record,
    RecordTooLarge,
    TopicSpec,
)
from streams.transport.partition.backend import NewRecord, PositionRow
from streams.transport.sqlite import file
from streams.transport.sqlite.file import FORMAT, LogFile
from streams.transport.sqlite.log import SqliteLog
from streams.transport.sqlite.place import LogInUse
from streams.transport.sqlite.shard import TAIL_BYTES

TOPICS = (
    TopicSpec("in", 2),
    TopicSpec("queue", 1, queue=True),
    TopicSpec("kept", 1, retention_ms=60_000),
    TopicSpec("table.changelog", 2, compacted=True),
)


class SetClock(HostClock):
    """The host's clock with a wall clock and a monotonic clock that the test sets."""

    now = 1_000.0
    up = 5.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.up


@asynccontextmanager
async def opened(path: Path, clock: HostClock | None = None, **settings: object) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(path, clock or HostClock(), **settings)  # type: ignore[arg-type]
    await log.start()
    try:
        await log.create(TOPICS)
        yield log
    finally:
        if log.state == "ok":
            await log.stop()
        else:
            await asyncio.gather(log.stop(), return_exceptions=True)


async def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def everything(log: SqliteLog, topic: str, partition: int = 0) -> list[Record]:
    return [record async for batch in log.read(topic, partition, 0, 1 << 60) for record in batch]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def test_appended_records_are_read_after_opening_again(path: Path) -> None:
    """Offsets, keys, values, headers and timestamps are unchanged."""
    async with opened(path) as log:
        first = await log.append("in", 1, b"k", b"v", [("h", b"1")])
        second = await log.append("in", 1, None, b"w")
        assert (first.offset, second.offset) == (0, 1)
    async with opened(path) as log:
        assert await log.ends("in") == [(0, 0), (0, 2)]
        assert await everything(log, "in", 1) == [
            Record("in", 1, 0, first.timestamp, b"k", b"v", (("h", b"1"),)),
            Record("in", 1, 1, second.timestamp, None, b"w", ()),
        ]
        assert (await log.append("in", 1, None, b"x")).offset == 2


async def test_only_readers_that_run_ahead_get_uncommitted_records(path: Path) -> None:
    """Before the window's commit, a `committed_only` reader, `read` and `ends` do not have the record."""
    async with opened(path, window=0.2) as log:
        ahead = log.reader("in", 0, committed_only=False)
        behind = log.reader("in", 0, committed_only=True)
        waiting = asyncio.ensure_future(behind.fetch(10))
        log.put("in", 0, [NewRecord(b"k", b"v")])
        assert [r.value for r in await ahead.fetch(10)] == [b"v"]
        assert not waiting.done()
        assert await log.ends("in") == [(0, 0), (0, 0)]
        assert await everything(log, "in") == []
        await log.flush()
        assert [r.value for r in await waiting] == [b"v"]
        assert await log.ends("in") == [(0, 1), (0, 0)]


async def test_a_window_is_one_transaction(path: Path) -> None:
    """Records, rows, position and offset of one window are in the file together, or not at all."""
    async with opened(path, window=0.05) as log:
        log.put("in", 0, [NewRecord(b"k", b"v")])
        log.put_rows("table.changelog", 0, {b"a": b"1", b"b": b"2"})
        log.put_position("fold", "in", 0, PositionRow(1, 2, 3, 4))
        log.put_offset("follower", "in", 0, 1)
        other = sqlite3.connect(path)
        tables = ("batches", "rows", "positions", "offsets")

        def counts() -> list[int]:
            return [other.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]

        assert counts() == [0, 0, 0, 0]
        await log.flush()
        assert counts() == [1, 2, 1, 1]
        other.close()


async def test_rows_and_positions_are_recovered(path: Path) -> None:
    """Recovery returns the newest row of each key of that partition, without deleted ones, and the position row."""
    async with opened(path) as log:
        log.put_rows("table.changelog", 0, {b"a": b"1", b"b": b"2"})
        log.put_rows("table.changelog", 1, {b"z": b"9"})
        await log.flush()
        log.put_rows("table.changelog", 0, {b"a": b"3", b"b": None})
        log.put_position("fold", "in", 0, PositionRow(7, 2, 5, 6))
    async with opened(path) as log:
        topic = log.shard("table.changelog", 0).topic
        assert list(log.file.rows(topic, 0)) == [{b"a": b"3"}]
        assert log.position("fold", "in", 0) == PositionRow(7, 2, 5, 6)
        assert log.position("fold", "in", 1) is None


async def test_a_changelog_can_be_followed(path: Path) -> None:
    """A follower of a compacted topic gets the newest version per key, tombstones too, and then each change."""
    seen: list[tuple[bytes | None, bytes | None]] = []

    async def handle(records: Sequence[Record]) -> None:
        seen.extend((r.key, r.value) for r in records)

    async with opened(path) as log:
        log.put_rows("table.changelog", 0, {b"a": b"1", b"b": b"2"})
        await log.flush()
        log.put_rows("table.changelog", 0, {b"a": b"3"})
        await log.flush()
        await log.follow("model", "table.changelog", handle)
        await eventually(lambda: len(seen) == 2)
        assert seen == [(b"b", b"2"), (b"a", b"3")]
        log.put_rows("table.changelog", 0, {b"b": None})
        await eventually(lambda: len(seen) == 3)
        assert seen[2] == (b"b", None)


async def test_a_follower_resumes_after_the_records_it_handled(path: Path) -> None:
    """Its group's offset is committed after the handler returned, and survives a restart."""
    seen: list[bytes | None] = []

    async def handle(records: Sequence[Record]) -> None:
        seen.extend(r.value for r in records)

    async with opened(path) as log:
        for i in range(5):
            await log.append("in", i % 2, None, b"%d" % i)
        follower = await log.follow("g", "in", handle, batch=2)
        await eventually(lambda: len(seen) == 5)
        await follower.stop()
        await log.append("in", 0, None, b"5")
    seen.clear()
    async with opened(path) as log:
        await log.follow("g", "in", handle)
        await eventually(lambda: seen)
        assert seen == [b"5"]


async def test_a_handler_that_raises_ends_the_worker(path: Path) -> None:
    """The error reaches `on_failure`, and the batch is delivered again after a restart."""
    errors: list[Exception] = []
    seen: list[bytes | None] = []

    async def refuse(records: Sequence[Record]) -> None:
        raise ValueError(f"no to {len(records)}")

    async def handle(records: Sequence[Record]) -> None:
        seen.extend(r.value for r in records)

    async with opened(path, on_failure=errors.append) as log:
        await log.append("in", 0, None, b"v")
        await log.follow("g", "in", refuse)
        await eventually(lambda: errors)
        assert isinstance(errors[0], ValueError)
    async with opened(path) as log:
        await log.follow("g", "in", handle)
        await eventually(lambda: seen)


async def test_timestamps_never_go_back_or_stand_still(path: Path) -> None:
    """With the wall clock set back, the log continues at the monotonic clock's pace, also over a restart."""
    clock = SetClock()
    async with opened(path, clock) as log:
        assert (await log.append("in", 0, None, b"a")).timestamp == 1_000_000
        clock.now = 900.0
        assert (await log.append("in", 0, None, b"b")).timestamp == 1_000_000
        clock.up += 2.5
        assert (await log.append("in", 0, None, b"b")).timestamp == 1_002_500
    clock.up = 0.0
    async with opened(path, clock) as log:
        assert (await log.append("in", 1, None, b"c")).timestamp == 1_002_500
        clock.now = 2_000.0
        assert (await log.append("in", 1, None, b"d")).timestamp == 2_000_000


async def test_a_record_above_the_limit_is_refused_before_it_has_an_offset(path: Path) -> None:
    """The largest record is accepted; one byte more raises, and nothing sent with it is appended."""
    async with opened(path) as log:
        largest = b"x" * (LARGEST_RECORD_BYTES - 128 - 1)
        assert (await log.append("in", 0, b"k", largest)).offset == 0
        with pytest.raises(RecordTooLarge, match="record_too_large"):
            log.put("in", 0, [NewRecord(b"k", b"small"), NewRecord(b"k", largest + b"x")])
        assert (await log.append("in", 0, b"k", b"after")).offset == 1
        assert [len(r.value or b"") for r in await everything(log, "in")] == [len(largest), 5]


async def test_slow_readers_read_from_the_file(path: Path) -> None:
    """Memory keeps TAIL_BYTES of a partition for a slow reader; it still gets every record in order."""
    async with opened(path) as log:
        slow = log.reader("in", 0, committed_only=False)
        value = b"x" * 10_000
        for _ in range(100):
            log.put("in", 0, [NewRecord(None, value)] * 10)
            await log.flush()
        shard = log.shard("in", 0)
        assert sum(len(r.value or b"") for r in shard.tail) <= TAIL_BYTES
        offsets: list[int] = []
        while len(offsets) < 1000:
            offsets += [r.offset for r in await slow.fetch(7)]
        assert offsets == list(range(1000))
        await log.append("in", 0, None, b"y")
        assert len(shard.tail) <= 1


async def test_consumed_queue_records_are_deleted(path: Path) -> None:
    """Nothing is kept below the lowest durable position of a queue's readers, which becomes the log start."""
    async with opened(path, retention_seconds=0.01) as log:
        log.register("fast", "queue", 0)
        log.register("slow", "queue", 0)
        for i in range(10):
            await log.append("queue", 0, None, b"%d" % i)
        log.put_offset("fast", "queue", 0, 10)
        log.put_offset("slow", "queue", 0, 4)
        await eventually(lambda: log.shard("queue", 0).start == 4)
        await log.flush()
        assert [r.offset for r in await everything(log, "queue")] == [4, 5, 6, 7, 8, 9]
    async with opened(path) as log:
        assert await log.ends("queue") == [(4, 10)]


async def test_queue_records_consumed_within_the_window_are_never_written(path: Path) -> None:
    """Their offsets are not used again."""
    async with opened(path, window=0.05) as log:
        log.register("agent", "queue", 0)
        log.put("queue", 0, [NewRecord(None, b"a"), NewRecord(None, b"b")])
        log.put_offset("agent", "queue", 0, 1)
        await log.flush()
        assert [r.offset for r in await everything(log, "queue")] == [1]
        assert await log.ends("queue") == [(1, 2)], "no hole above the log start"
    async with opened(path) as log:
        assert (await log.append("queue", 0, None, b"c")).offset == 2


async def test_retention_deletes_old_records_and_moves_the_log_start(path: Path) -> None:
    """Topics without retention keep everything; a reader below the log start continues at it."""
    clock = SetClock()
    async with opened(path, clock) as log:
        await log.append("kept", 0, None, b"old")
        await log.append("in", 0, None, b"old")
        clock.now += 59
        await log.append("kept", 0, None, b"new")
        clock.now += 2
        log.enforce_retention()
        await log.flush()
        assert [r.value for r in await everything(log, "kept")] == [b"new"]
        assert (await log.ends("kept"), (await log.ends("in"))[0]) == ([(1, 2)], (0, 1))
        reader = log.reader("kept", 0, committed_only=True)
        reader.seek(0)
        assert [r.offset for r in await reader.fetch(5)] == [1]


async def test_a_second_process_gets_one_clear_error(path: Path) -> None:
    """The file has one owner; the error names the reason and the remedy."""
    # specification 22.10
    async with opened(path):
        with pytest.raises(LogInUse, match=r"log_in_use: .*log\.db is open in another process"):
            await SqliteLog(path, HostClock()).start()
    async with opened(path) as log:
        assert log.state == "ok"


async def test_a_take_over_fences_the_former_owner(path: Path) -> None:
    """The former owner's next commit is refused as a whole, its readers end, and the new owner's log is untouched."""
    errors: list[Exception] = []
    async with opened(path, on_failure=errors.append) as old:
        await old.append("in", 0, None, b"before")
        reading = asyncio.ensure_future(old.reader("in", 1, committed_only=False).fetch(1))
        async with opened(path, take_over=True) as new:
            with pytest.raises(Fenced, match="log_fenced"):
                await old.append("in", 0, None, b"zombie")
            with pytest.raises(Fenced):
                await reading
            with pytest.raises(Fenced):
                old.put_rows("table.changelog", 0, {b"a": b"zombie"})
            assert old.state.startswith("log_fenced")
            assert len(errors) == 1
            assert (await new.append("in", 0, None, b"after")).offset == 1
            assert [r.value for r in await everything(new, "in")] == [b"before", b"after"]


async def test_a_take_over_from_a_process_stopped_in_a_write_names_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's lock stays until that process continues or ends; the error does not blame the disk."""
    async with opened(path) as log:
        await log.append("in", 0, None, b"before")
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.1)
    stopped = sqlite3.connect(path, isolation_level=None)
    try:
        stopped.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogFailed, match=r"log_in_use: .*that process hangs or is stopped"):
            LogFile(path, take_over=True)
    finally:
        stopped.close()


async def test_a_full_disk_stops_everything(path: Path) -> None:
    """A commit that cannot be written fails every waiting caller; nothing of that window is in the file."""
    errors: list[Exception] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with opened(path, on_failure=errors.append) as log:
        await log.append("in", 0, None, b"before")
        follower_end = asyncio.ensure_future(log.reader("in", 1, committed_only=True).fetch(1))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
            log.put_rows("table.changelog", 0, {b"a": b"row"})
            with pytest.raises(LogFailed, match=r"log_io: .*look at the disk's space"):
                await log.append("in", 0, None, b"x" * 500_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(LogFailed):
            await log.append("in", 0, None, b"later")
        with pytest.raises(LogFailed):
            await follower_end
        assert log.state.startswith("log_io")
        assert [type(error) for error in errors] == [LogFailed]
    async with opened(path) as log:
        assert [r.value for r in await everything(log, "in")] == [b"before"]
        assert list(log.file.rows(log.shard("table.changelog", 0).topic, 0)) == []


async def test_a_full_database_stops_everything(path: Path) -> None:
    """The same when SQLite itself says that the file is full, before the commit."""
    async with opened(path) as log:
        pages = log.file._writer.execute("PRAGMA page_count").fetchone()[0]
        log.file._writer.execute(f"PRAGMA max_page_count={pages + 10}")
        with pytest.raises(LogFailed, match="log_io"):
            await log.append("in", 0, None, b"x" * 500_000)
    async with opened(path) as log:
        assert await everything(log, "in") == []


async def test_a_newer_format_is_refused(path: Path) -> None:
    """A file of a later release is not changed."""
    async with opened(path):
        pass
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA user_version={FORMAT + 1}")
    other.close()
    with pytest.raises(LogFailed, match=f"log_format: .* has format {FORMAT + 1}"):
        await SqliteLog(path, HostClock()).start()


async def test_a_file_of_format_1_becomes_one_that_its_release_refuses(path: Path) -> None:
    """Its position rows have no fold number; release 0.1.0 reads only format 1."""
    # specification 24.5
    async with opened(path) as log:
        log.put_position("fold", "in", 0, PositionRow(1, 2, 3, 4))
        await log.flush()
    other = sqlite3.connect(path)
    other.executescript("ALTER TABLE positions DROP COLUMN fold; PRAGMA user_version=1")
    other.close()
    for fold in (0, 4):
        async with opened(path) as log:
            assert log.position("fold", "in", 0) == PositionRow(1, 2, 3, 4, fold)
            log.put_position("fold", "in", 0, PositionRow(1, 2, 3, 4, 4))
            await log.flush()
    other = sqlite3.connect(path)
    assert other.execute("PRAGMA user_version").fetchone() == (2,)
    other.close()


async def test_a_foreign_file_is_refused(path: Path) -> None:
    """A database of another program is not used as a log."""
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t(x)")
    other.close()
    with pytest.raises(LogFailed, match="log_foreign"):
        await SqliteLog(path, HostClock()).start()


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    """Another file with that name is not changed."""
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(LogFailed, match="log_io"):
        LogFile(path)
    assert path.read_bytes() == b"not a database" * 100


async def test_synchronous_full_is_set_on_request_and_a_typo_is_refused(path: Path) -> None:
    """2 stands for FULL, an fsync for each commit."""
    async with opened(path, synchronous="full") as log:
        assert log.file._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    with pytest.raises(LogFailed, match="log_setting"):
        await SqliteLog(path, HostClock(), synchronous="fulll").start()


async def test_topics_are_created_once_and_keep_their_partition_count(path: Path) -> None:
    """Another count is an error that names both; so is an unknown topic or partition."""
    async with opened(path) as log:
        await log.create(TOPICS)
        with pytest.raises(LogFailed, match=r"partition_count: topic in .* has 2 partitions, not 3"):
            await log.create([TopicSpec("in", 3)])
        with pytest.raises(LogFailed, match="topic_missing"):
            await log.append("nowhere", 0, None, b"")
        with pytest.raises(LogFailed, match="partition_missing"):
            await log.append("in", 2, None, b"")


async def test_a_stopped_log_has_committed_everything_and_refuses_calls(path: Path) -> None:
    """Writes before the stop are durable; afterwards the log raises that it is stopped."""
    log = SqliteLog(path, HostClock(), window=0.05)
    await log.start()
    await log.create(TOPICS)
    log.put("in", 0, [NewRecord(None, b"last")])
    reading = asyncio.ensure_future(log.reader("in", 1, committed_only=False).fetch(1))
    await asyncio.sleep(0)
    await log.stop()
    with pytest.raises(LogUnavailable):
        await reading
    with pytest.raises(LogUnavailable, match="log_stopped"):
        await log.append("in", 0, None, b"")
    async with opened(path) as log:
        assert [r.value for r in await everything(log, "in")] == [b"last"]


async def test_keys_have_the_same_partition_as_on_kafka(tmp_path: Path) -> None:
    """murmur2 of Kafka's default partitioner (values from the Java client)."""
    log = SqliteLog(tmp_path / "log.db", HostClock())
    assert [log.partition_of(key, 1000) for key in (b"21", b"foobar", b"a-little-bit-long-string")] == [
        (-973932308 & 0x7FFFFFFF) % 1000,
        (-790332482 & 0x7FFFFFFF) % 1000,
        (-985981536 & 0x7FFFFFFF) % 1000,
    ]


async def test_a_note_is_kept_with_its_followers_offset(path: Path) -> None:
    """`taken` gets it with the log end before the first batch, also after a restart."""
    taken_calls: list[Committed] = []
    seen: list[bytes | None] = []

    async def handle(records: Sequence[Record]) -> str:
        seen.extend(r.value for r in records)
        return f"up to {records[-1].offset}"

    async def taken(committed: Committed) -> None:
        taken_calls.append(committed)

    async with opened(path) as log:
        await log.append("in", 0, None, b"0")
        follower = await log.follow("g", "in", handle, taken=taken)
        assert follower.fresh
        await eventually(lambda: seen)
        await follower.stop()
        await log.append("in", 0, None, b"1")
    assert min(taken_calls) == Committed(0, None, "", 1)
    taken_calls.clear()
    async with opened(path) as log:
        await log.follow("g", "in", handle, taken=taken)
        await eventually(lambda: len(seen) == 2)
    assert min(taken_calls) == Committed(0, 1, "up to 0", 2)
