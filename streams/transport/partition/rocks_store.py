"""Rows on disk, in RocksDB, for state larger than memory: a temporary copy of the changelog.

Each partition has a database in a folder of its own, so that its files go with it, and broken files harm no other
partition. All databases share one cache of blocks and one bound of rows not yet in files. A folder is emptied before
use, so files of a former process do not matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from ports.log import LogFailed, StateLost
from streams.transport.partition.row_store import EncodedRows, RowStore

# Cache of blocks, indexes and filters, for all databases of a worker.
CACHE_BYTES = 16 * 1024 * 1024
# Rows in memory that are not yet in files, for all databases of a worker.
UNWRITTEN_BYTES = 16 * 1024 * 1024
# The same, for one database.
BUFFER_BYTES = 2 * 1024 * 1024
# Size of one write while loading.
BATCH_BYTES = 1024 * 1024
# Limits of one page while reading all rows.
PAGE_ROWS, PAGE_BYTES = 100, 256 * 1024
# Open files of one database.
OPEN_FILES = 32

# First byte of a key. Each row has a second, empty entry, so that keys are counted and listed without reading rows.
ROW, KEY = b"r", b"k"
Result = TypeVar("Result")


class RocksStores:
    """Stores in one folder, used by this worker alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._lock: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="row-stores")
        """Runs everything that waits for the disk, in order, except reads of single rows."""
        self._cache = Cache(CACHE_BYTES)
        self._unwritten = WriteBufferManager(UNWRITTEN_BYTES, allow_stall=False)

    async def start(self) -> None:
        """Take the folder. Raises LogFailed if another worker has it, or if it cannot be used."""
        await self.run(self._take_folder)

    def _take_folder(self) -> None:
        if self._lock is not None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise LogFailed(
                    "state_dir_in_use",
                    f"{self._folder} is another worker's",
                    remedy="give each its own CEREMONY_STATE_DIR",
                ) from None
            self._lock = lock
            _remove(self._partitions)
            self._partitions.mkdir()
        except OSError as error:
            text = f"{self._folder} ({error.strerror})"
            raise LogFailed("state_dir_unusable", text, remedy="see CEREMONY_STATE_DIR") from error

    @property
    def _partitions(self) -> Path:
        """Folder whose content may be deleted at any time."""
        return self._folder / "partitions"

    async def open(self, agent: str, partition: int, tables: Sequence[str]) -> RowStore:
        folder = self._partitions / f"{agent}-{partition}"
        opening = asyncio.get_running_loop().run_in_executor(self._thread, self._open, folder, tables)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unused)  # the thread opens it all the same
            raise

    def _open(self, folder: Path, tables: Sequence[str]) -> RocksStore:
        try:
            _remove(folder)
            database = Rdict(str(folder), self._options())
        except Exception as error:
            raise _lost(folder, "opened", error) from error
        unlogged = WriteOptions()
        unlogged.disable_wal = True  # type: ignore[method-assign, assignment]  # a property, whatever its stub says
        database.set_write_options(unlogged)
        return RocksStore(database, folder, tables, self)

    def _options(self) -> Options:
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_cache_index_and_filter_blocks(v=True)
        blocks.set_bloom_filter(10, block_based=False)
        options = Options(raw_mode=True)
        options.create_if_missing(create_if_missing=True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_manager(self._unwritten)
        options.set_write_buffer_size(BUFFER_BYTES)
        options.set_arena_block_size(64 * 1024)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_max_open_files(OPEN_FILES)
        options.set_max_background_jobs(2)
        options.set_keep_log_file_num(1)
        options.set_max_log_file_size(1024 * 1024)
        options.set_stats_dump_period_sec(0)
        options.set_stats_persist_period_sec(0)
        return options

    async def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run `work` in the thread, after all earlier work."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def later(self, work: Callable[[], None]) -> None:
        """Run `work` in the thread without waiting for it."""
        with contextlib.suppress(RuntimeError):  # after the stop: open databases end with the process
            self._thread.submit(work)

    async def stop(self) -> None:
        await self.run(self._give_folder_back)
        self._thread.shutdown(wait=False)

    def _give_folder_back(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


class RocksStore:
    """The rows of one partition. Reads run on the event loop, as they take microseconds; writes run in the thread."""

    def __init__(self, database: Rdict, folder: Path, tables: Sequence[str], stores: RocksStores) -> None:
        self._database = database
        self._folder = folder
        self._stores = stores
        self._rows = {table: ROW + table.encode() + b"\0" for table in tables}
        self._keys = {table: KEY + table.encode() + b"\0" for table in tables}
        self._counts = dict.fromkeys(tables, 0)
        self._closed = False

    # ---- loading

    async def load(self, table: str, rows: Mapping[bytes, bytes | None]) -> None:
        if not self._closed:
            await self._stores.run(self._load, table, rows)

    def _load(self, table: str, rows: Mapping[bytes, bytes | None]) -> None:
        with self._failing("written"):
            batch = WriteBatch(raw_mode=True)
            for key, raw in rows.items():
                self._put(batch, table, key, raw)
                if batch.size_in_bytes() >= BATCH_BYTES:
                    self._database.write(batch)
                    batch = WriteBatch(raw_mode=True)
            self._database.write(batch)

    def _put(self, batch: WriteBatch, table: str, key: bytes, raw: bytes | None) -> None:
        if raw is None:
            batch.delete(self._rows[table] + key)
            batch.delete(self._keys[table] + key)
        else:
            batch.put(self._rows[table] + key, raw)
            batch.put(self._keys[table] + key, b"")

    async def loaded(self) -> None:
        self._counts = await self._stores.run(self._count)

    def _count(self) -> dict[str, int]:
        return {table: sum(1 for _ in self._entries(prefix)) for table, prefix in self._keys.items()}

    # ---- reading

    def get(self, table: str, key: bytes) -> bytes | None:
        if self._closed:
            return None
        try:
            raw: bytes | None = self._database.get(self._rows[table] + key)
        except Exception as error:
            raise _lost(self._folder, "read", error) from error
        return raw

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        first = b""
        while page := self._page(table, first):
            yield from page
            first = page[-1][0] + b"\0"

    def _page(self, table: str, first: bytes) -> list[tuple[bytes, bytes]]:
        """Return rows from a key on. No iterator stays open afterwards, as it would keep obsolete files."""
        page: list[tuple[bytes, bytes]] = []
        size = 0
        if self._closed:
            return page
        for key, raw in self._entries(self._rows[table], first):
            page.append((key, raw))
            size += len(raw)
            if len(page) == PAGE_ROWS or size >= PAGE_BYTES:
                break
        return page

    def keys(self, table: str) -> list[bytes]:
        return [] if self._closed else [key for key, _ in self._entries(self._keys[table])]

    def _entries(self, prefix: bytes, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Iterate over entries by the rest of their key after `prefix`, which ends with a zero byte."""
        with self._failing("read"):
            until = ReadOptions()
            until.set_iterate_upper_bound(prefix[:-1] + b"\1")
            found = self._database.iter(until)
            found.seek(prefix + first)
            while found.valid():
                yield found.key()[len(prefix) :], found.value()
                found.next()
            found.status()  # raises for a broken block, at which an iterator just ends

    def count(self, table: str) -> int:
        return self._counts[table]

    # ---- changing

    async def write(self, rows: EncodedRows) -> None:
        if not self._closed:
            self._counts = await self._stores.run(self._write, rows)

    def _write(self, rows: EncodedRows) -> dict[str, int]:
        counts = dict(self._counts)
        with self._failing("written"):
            batch = WriteBatch(raw_mode=True)
            for table, changed in rows.items():
                if changed:
                    counts[table] += self._more(table, changed)
                for key, raw in changed.items():
                    self._put(batch, table, key, raw)
            self._database.write(batch)
        return counts

    def _more(self, table: str, changed: Mapping[bytes, bytes | None]) -> int:
        """Return by how many rows the table will grow."""
        prefix = self._keys[table]
        known: Any = self._database.get([prefix + key for key in changed])
        before = sum(entry is not None for entry in known)
        return sum(raw is not None for raw in changed.values()) - before

    def cool(self, table: str, keys: Iterable[bytes]) -> None:
        """Do nothing, as all rows are on disk."""

    def tidy(self, most: int) -> int:
        return 0

    def close(self) -> None:
        """Close and delete the files; the next owner, which may be this worker, loads its own."""
        if not self._closed:
            self._closed = True
            self._counts = dict.fromkeys(self._counts, 0)
            self._stores.later(self._remove)

    def _remove(self) -> None:
        with contextlib.suppress(Exception):
            self._database.close()
            _remove(self._folder)

    @contextlib.contextmanager
    def _failing(self, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise _lost(self._folder, done, error) from error


def _close_unused(opening: asyncio.Future[RocksStore]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _remove(path: Path) -> None:
    """Remove a folder with its content, or a file or link in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lost(folder: Path, done: str, error: Exception) -> StateLost:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return StateLost(f"{folder} cannot be {done} ({reason})")
