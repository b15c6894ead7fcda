"""The outbox: a file of accepted starts that the engine has not taken yet, so that they survive the caller's process.

Each line is a checksum and JSON: a start with its encoded request, or the id of one that is settled. A start is on disk
before it counts as accepted. The line of a settled one need not be: a start that is sent again is recognised by the
engine. The file is emptied when nothing is pending, and rewritten when most of it is settled. The process that has it
open holds a lock on a file beside it. The lock is one of POSIX: a forked child does not inherit it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import json
import os
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

LARGEST_BYTES = 64 * 1024 * 1024
# Settled bytes below which the file is not rewritten.
LEAST_SETTLED_BYTES = 64 * 1024
# A full file is rewritten if at least this part of it is settled; else each new start could cost a rewriting.
WORTH_REWRITING = 8
PRIVATE = 0o600

_open_here: set[str] = set()
_open_here_lock = threading.Lock()


class OutboxError(Exception):
    """The outbox cannot be used."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        """`outbox_in_use` or `outbox_unusable`."""


class StoredStart(NamedTuple):
    """One start in the outbox."""

    request_id: str
    request: bytes
    """The encoded StartPlanningCeremonyRequest."""
    accepted_at: float
    """Seconds since the epoch by the host's clock."""
    deadline: float | None
    """Seconds from then; None for none."""


class StartOutbox:
    """One open outbox file; methods may be called by any thread."""

    def __init__(self, path: str | os.PathLike[str], largest_bytes: int = LARGEST_BYTES) -> None:
        """Open or make the file, with mode 0600. Raises OutboxError while another process has it open."""
        self._path = Path(path).parent.resolve() / Path(path).name
        self._largest_bytes = largest_bytes
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        self._written = self._synced = 0
        """Number of puts that were written, and that are on disk."""
        self._pending: dict[str, bytes] = {}
        """Lines by request id."""
        self._pending_bytes = self._size = 0
        self.restored: list[StoredStart] = []
        """Starts of an earlier process that are still pending, in order."""
        self.unreadable = 0
        """Lines that were damaged, without a last one that is incomplete: its start was never accepted."""
        try:
            self._lock = _locked(self._path)
        except OSError as error:
            raise OutboxError("outbox_unusable", f"{self._path}: {error.strerror}") from None
        try:
            self._file = _private_file(self._path)
            self._load()
        except OSError as error:
            self._unlock()
            raise OutboxError("outbox_unusable", f"{self._path}: {error.strerror}") from None

    def put(self, start: StoredStart) -> bool:
        """Write a start, and return when it is on disk; False when there is no room. Raises OSError."""
        line = _line(
            {
                "id": start.request_id,
                "at": start.accepted_at,
                "for": start.deadline,
                "request": base64.b64encode(start.request).decode(),
            }
        )
        with self._writing:
            self._require_open()
            if not self._has_room(len(line)):
                return False
            self._append(line)
            self._keep(start.request_id, line)
            self._written += 1
            number = self._written
        try:
            self._sync(number)
        except OSError:
            self.settle(start.request_id)
            raise
        return True

    def settle(self, request_id: str) -> None:
        """Forget a start that was taken, refused or dropped. Raises OSError."""
        with self._writing:
            if self._file < 0 or not self._forget(request_id):
                return
            if not self._pending:
                self._empty()
                return
            line = _line({"settled": request_id})
            size = self._size + len(line)
            if size > self._largest_bytes or size - self._pending_bytes > max(LEAST_SETTLED_BYTES, size // 2):
                self._rewrite()
            else:
                self._append(line)

    def close(self) -> None:
        """Close the file, and let another process open it."""
        with self._syncing, self._writing:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                self._unlock()

    # -- writing

    def _require_open(self) -> None:
        if self._file < 0:
            raise OSError(errno.EBADF, "the outbox is closed")

    def _has_room(self, more: int) -> bool:
        if self._size + more <= self._largest_bytes:
            return True
        settled = self._size - self._pending_bytes
        if self._pending_bytes + more > self._largest_bytes or settled * WORTH_REWRITING < self._size:
            return False
        self._rewrite()
        return True

    def _keep(self, request_id: str, line: bytes) -> None:
        self._forget(request_id)
        self._pending[request_id] = line
        self._pending_bytes += len(line)

    def _forget(self, request_id: str) -> bool:
        line = self._pending.pop(request_id, b"")
        self._pending_bytes -= len(line)
        return bool(line)

    def _empty(self) -> None:
        os.ftruncate(self._file, 0)
        self._size = 0

    def _append(self, line: bytes) -> None:
        """Write a line wholly, or take back the part that was written."""
        try:
            _write(self._file, line)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def _sync(self, number: int) -> None:
        """Return when this put is on disk. Puts that wait together share one fsync."""
        with self._syncing:
            if self._synced >= number:
                return
            with self._writing:
                self._require_open()
                written, file = self._written, self._file
            os.fsync(file)
            self._synced = written

    def _rewrite(self) -> None:
        """Replace the file by one with the pending starts only. A sync under way may go on with the old one."""
        new = self._path.with_name(f"{self._path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        file = _private_file(new)
        try:
            content = b"".join(self._pending.values())
            _write(file, content)
            os.fsync(file)
            new.replace(self._path)
            os.dup2(file, self._file, inheritable=False)
            self._size = len(content)
            _sync_folder(self._path)
        finally:
            os.close(file)

    # -- opening

    def _load(self) -> None:
        content = _content(self._file)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        self._size = whole
        starts: dict[str, StoredStart] = {}
        for text in content[:whole].split(b"\n")[:-1]:
            line = text + b"\n"
            found = _read(line)
            if isinstance(found, StoredStart):
                starts[found.request_id] = found
                self._keep(found.request_id, line)
            elif found is not None:
                starts.pop(found, None)
                self._forget(found)
            else:
                self.unreadable += 1
        self.restored = list(starts.values())
        if not self._pending:
            self._empty()

    def _unlock(self) -> None:
        os.close(self._lock)
        with _open_here_lock:
            _open_here.discard(str(self._path))


def _line(record: dict[str, object]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _read(line: bytes) -> StoredStart | str | None:
    """The start in a line, the id of a settled one, or None for a damaged line."""
    checksum, _, text = line[:-1].partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
        if "settled" in record:
            return str(record["settled"])
        request = base64.b64decode(record["request"], validate=True)
        deadline = None if record["for"] is None else float(record["for"])
        return StoredStart(str(record["id"]), request, float(record["at"]), deadline)
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None


def _locked(path: Path) -> int:
    """Open and lock the file beside an outbox. Raises OutboxError when it is locked, OSError when it cannot be made."""
    import fcntl  # noqa: PLC0415 - on Windows there is none, and all but the outbox works

    in_use = OutboxError("outbox_in_use", f"{path}: a client has it open; give each process an outbox of its own")
    with _open_here_lock:  # a lock of POSIX does not keep out its own process
        if str(path) in _open_here:
            raise in_use
        lock = _private_file(path.with_name(f"{path.name}.lock"))
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise in_use from None
        _open_here.add(str(path))
        return lock


def _private_file(path: Path) -> int:
    """Open or make a file that only its owner may read; a link is not followed."""
    made = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
    try:
        os.fchmod(file, PRIVATE)
        if made:
            _sync_folder(path)
    except OSError:
        os.close(file)
        raise
    return file


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _content(file: int) -> bytes:
    parts = []
    os.lseek(file, 0, os.SEEK_SET)
    while part := os.read(file, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
