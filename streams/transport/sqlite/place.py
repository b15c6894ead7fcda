"""The place of the embedded log on disk: private files, one owner, and a watch over the files while they are in use.

A lock file beside the log keeps other processes out. It also notes the epoch of the last opening and the time of the
last commit, so that a log that was deleted, emptied, cut or replaced is noticed before starts are accepted.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ports.log import LogFailed

# Linux draws a new id at each boot. A power cut may lose commits that the note has, so it counts within one boot only.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NOTE = re.compile(rb"(\d{1,18}) (\d{1,18}) ([0-9a-f-]{0,40})\n")
_PUT_BACK = "put the file back; to go on without what is lost, remove {lock} too"


class LogInUse(LogFailed):
    """Another process has the file open."""


class Note(NamedTuple):
    """The content of the lock file."""

    epoch: int = 0
    """Epoch of the last opening; 0 before the first."""
    timestamp: int = 0
    """The log's time at the last commit in milliseconds."""
    boot: str = ""


class LogPlace:
    """The files of one log: `<path>`, `<path>-wal` and `<path>.lock`."""

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        """Take the lock, unless `take_over`. Raises LogInUse, LogFailed."""
        self.path = path.resolve()  # a symbolic link leads to the lock of the file that it names
        self.wal = self.path.with_name(f"{self.path.name}-wal")
        self.lock_path = self.path.with_name(f"{self.path.name}.lock")
        self._seen: dict[Path, tuple[int, int, int]] = {}
        """Device, inode and largest size of each file in use."""
        self._epoch = 0
        self._boot = _boot_id()
        self._locked = False
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._claim(take_over=take_over)
            self._expect_the_last_one()
            self._make_private()
        except BaseException:
            os.close(self._lock)
            raise

    def _claim(self, *, take_over: bool) -> None:
        if not self.take_lock() and not take_over:
            raise LogInUse(
                "log_in_use",
                f"{self.path} is open in another process",
                remedy="the embedded log has one owner, so stop that process, or use another file or kafka://",
            )

    def take_lock(self) -> bool:
        """Take the lock if it is free. After `take_over` it is free once the fenced owner has ended."""
        if not self._locked:
            with suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._locked = True
        return self._locked

    # -- before it is opened

    def _expect_the_last_one(self) -> None:
        """Raises LogFailed where a log was here and its files are not."""
        if self._note().epoch and _size(self.path) == 0:
            raise self._lost("log_missing", f"{self.path} is missing or empty, and a log was there")

    def _make_private(self) -> None:
        """Create the file, so that SQLite makes all files readable by their owner only. Raises LogFailed."""
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = self.path.stat()
        if found.st_nlink > 1:
            raise LogFailed(
                "log_linked",
                f"{self.path} has another name (a hard link)",
                remedy="remove the other name, or copy the file: the newest records stand beside one name only",
            )
        for path in (self.path, self.wal, self.lock_path):
            with suppress(FileNotFoundError, PermissionError):
                path.chmod(0o600)

    def opened(self, epoch: int, timestamp: int) -> None:
        """Note the epoch of this opening. Raises LogFailed for a file that is older than the one that was here."""
        last = self._note()
        if epoch <= last.epoch or (last.boot and last.boot == self._boot and timestamp < last.timestamp):
            text = f"{self.path} is older than the log there was, or {self.wal.name} with the newest records is gone"
            raise self._lost("log_older", text)
        self._epoch = epoch
        self.committed(timestamp)
        self.check()

    def committed(self, timestamp: int) -> None:
        """Note the log's time at the last commit."""
        note = f"{self._epoch} {timestamp} {self._boot}\n".encode()
        os.pwrite(self._lock, note, 0)
        os.ftruncate(self._lock, len(note))

    # -- while it is open

    def check(self) -> None:
        """Raises LogFailed when a file was deleted, moved, replaced or cut: nothing written to it would be found."""
        for path in (self.path, self.wal, self.lock_path):
            try:
                found = path.stat()
            except FileNotFoundError:
                if path in self._seen:
                    raise self._gone(path, "was deleted or moved") from None
                continue
            device, inode, size = self._seen.get(path, (found.st_dev, found.st_ino, 0))
            if (found.st_dev, found.st_ino) != (device, inode):
                raise self._gone(path, "was replaced by another file")
            if found.st_size < size and path != self.lock_path:
                raise self._gone(path, "was emptied or cut")
            self._seen[path] = (device, inode, found.st_size)

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._lock)

    # -- the note in the lock file

    def _note(self) -> Note:
        """Return the note of the last opening; one without an epoch where there is none."""
        found = _NOTE.fullmatch(os.pread(self._lock, 200, 0))
        return Note(int(found[1]), int(found[2]), found[3].decode()) if found else Note()

    def _lost(self, code: str, message: str) -> LogFailed:
        return LogFailed(code, message, remedy=_PUT_BACK.format(lock=self.lock_path))

    def _gone(self, path: Path, text: str) -> LogFailed:
        return LogFailed(
            "log_gone",
            f"{path} {text} while it was in use",
            remedy="nothing is accepted any more; put the file back, then start again",
        )


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
