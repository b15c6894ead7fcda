"""The files of the embedded log: gone while in use or before, other names of a log, and permissions."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.clock import HostClock
from ports.log import LogFailed
from streams.transport.sqlite import place
from streams.transport.sqlite.file import LogFile
from streams.transport.sqlite.log import SqliteLog
from streams.transport.sqlite.place import LogInUse
from tests.transport.sqlite.test_log import eventually, everything, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "log.db"


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def delete_wal(path: Path) -> None:
    path.with_name("log.db-wal").unlink()


def empty_wal(path: Path) -> None:
    os.truncate(path.with_name("log.db-wal"), 0)


def delete_lock(path: Path) -> None:
    path.with_name("log.db.lock").unlink()


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


WAYS = (delete, move, empty, replace, delete_wal, empty_wal, delete_lock, move_folder)


@pytest.mark.parametrize("way", WAYS)
async def test_a_log_that_is_gone_while_it_runs_accepts_nothing_and_ends_the_worker(
    path: Path, way: Callable[[Path], None]
) -> None:
    # specification 22.14
    errors: list[Exception] = []
    async with opened(path, on_failure=errors.append) as log:
        await log.append("in", 0, None, b"before")
        way(path)
        with pytest.raises(LogFailed, match=r"log_gone: .*while it was in use; nothing is accepted any more"):
            await log.append("in", 0, None, b"lost")
        assert len(errors) == 1
        assert log.state.startswith("log_gone")


async def test_an_idle_log_notices_that_it_is_gone(path: Path) -> None:
    errors: list[Exception] = []
    async with opened(path, on_failure=errors.append, retention_seconds=0.02) as log:
        delete(path)
        await eventually(lambda: errors)
        assert log.state.startswith("log_gone")


@pytest.mark.parametrize("way", [delete, move, empty])
async def test_a_log_that_is_gone_before_the_start_is_refused(path: Path, way: Callable[[Path], None]) -> None:
    # specification 22.14
    async with opened(path) as log:
        await log.append("in", 0, None, b"before")
    way(path)
    with pytest.raises(LogFailed, match=r"log_missing: .*a log was there; put the file back"):
        LogFile(path)
    path.with_name("log.db.lock").unlink()
    async with opened(path) as log:
        assert await everything(log, "in") == [], "without the lock file it begins anew"


@pytest.mark.parametrize("way", [delete_wal, empty_wal])
async def test_a_log_whose_newest_records_were_deleted_after_a_kill_is_refused(
    path: Path, way: Callable[[Path], None]
) -> None:
    kept = path.parent.with_name("kept")
    async with opened(path) as log:
        await log.append("in", 0, None, b"before")
        _copy(path.parent, kept)  # the files as kill -9 leaves them
    way(kept / "log.db")
    with pytest.raises(LogFailed, match=r"log_older: .*log\.db-wal with the newest records is gone"):
        LogFile(kept / "log.db")


async def test_a_log_that_another_program_has_read_after_a_kill_is_opened(path: Path) -> None:
    """As the last one to close it, the shell of SQLite removes the file of the newest records, and loses none."""
    kept = path.parent.with_name("kept")
    async with opened(path) as log:
        await log.append("in", 0, None, b"before")
        _copy(path.parent, kept)
    other = sqlite3.connect(kept / "log.db")
    other.execute("SELECT count(*) FROM topics")
    other.close()
    assert "log.db-wal" not in names(kept)
    async with opened(kept / "log.db") as log:
        assert len(await everything(log, "in")) == 1


async def test_commits_that_a_power_cut_lost_are_no_reason_to_refuse(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = path.parent.with_name("kept")
    async with opened(path) as log:
        await log.append("in", 0, None, b"before")
        _copy(path.parent, kept)
    delete_wal(kept / "log.db")
    boot = path.with_name("boot")
    write(boot, "another-b007\n")
    monkeypatch.setattr(place, "BOOT_ID", boot)
    async with opened(kept / "log.db") as log:
        assert await everything(log, "in") == []


async def test_a_killed_log_is_opened_again(path: Path) -> None:
    kept = path.parent.with_name("kept")
    async with opened(path) as log:
        await log.append("in", 0, None, b"before")
        _copy(path.parent, kept)
    async with opened(kept / "log.db") as log:
        assert [record.value for record in await everything(log, "in")] == [b"before"]


async def test_an_older_copy_in_the_place_of_a_log_is_refused(path: Path) -> None:
    old = path.parent.with_name("old.db")
    async with opened(path):
        pass
    copy_file(path, old)
    async with opened(path) as log:
        await log.append("in", 0, None, b"newer")
    old.rename(path)
    with pytest.raises(LogFailed, match=r"log_older: .*log\.db is older than the log there was"):
        LogFile(path)


async def test_a_symbolic_link_to_a_log_in_use_is_refused(path: Path, tmp_path: Path) -> None:
    # specification 22.10
    link = tmp_path / "link.db"
    async with opened(path) as log:
        link.symlink_to(path)
        with pytest.raises(LogInUse, match="log_in_use"):
            await SqliteLog(link, HostClock()).start()
        await log.append("in", 0, None, b"a")
    async with opened(link) as log:
        assert len(await everything(log, "in")) == 1


async def test_a_hard_link_to_a_log_in_use_is_refused(path: Path, tmp_path: Path) -> None:
    # specification 22.10
    link = tmp_path / "link.db"
    async with opened(path) as log:
        link.hardlink_to(path)
        with pytest.raises(LogFailed, match=r"log_linked: .*link\.db has another name"):
            await SqliteLog(link, HostClock()).start()
        await log.append("in", 0, None, b"a")
        assert log.state == "ok"


async def test_the_files_are_private_whatever_the_umask(path: Path) -> None:
    # specification 22.15
    before = os.umask(0)
    try:
        async with opened(path) as log:
            await log.append("in", 0, None, b"a")
            modes = {name: mode(path.with_name(name)) for name in names(path.parent)}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("log.db", "log.db-wal", "log.db-shm", "log.db.lock"), 0o600)
    assert mode(path.parent) == 0o700


async def test_the_files_of_an_older_release_are_made_private(path: Path) -> None:
    async with opened(path):
        pass
    make_readable(path)
    async with opened(path):
        assert mode(path) == 0o600


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def copy_file(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def write(path: Path, text: str) -> None:
    path.write_text(text)


def make_readable(path: Path) -> None:
    path.chmod(0o644)


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        copy_file(file, target / file.name)
