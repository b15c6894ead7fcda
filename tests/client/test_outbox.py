"""The outbox file: on disk before a start is accepted, private, locked, bounded, and readable after any crash."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet.planning_ceremony.client import OutboxError, outbox
from fleet.planning_ceremony.client.outbox import StartOutbox, StoredStart
from hypothesis import given, settings
from hypothesis import strategies as st


def start(name: str, size: int = 10) -> StoredStart:
    return StoredStart(name, os.urandom(size), 1_800_000_000.25, 60.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "starts"


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    outbox._open_here.clear()


def reopened(file: Path) -> list[StoredStart]:
    again = StartOutbox(file)
    found = list(again.restored)
    again.close()
    return found


def test_what_was_put_and_not_settled_is_there_again(file: Path) -> None:
    # specification 14.28
    first, second, third = start("a"), start("b")._replace(deadline=None), start("c", 0)
    box = StartOutbox(file)
    assert all(box.put(one) for one in (first, second, third))
    box.settle("b")
    box.settle("b")
    box.settle("never")
    box.close()
    box.close()
    assert reopened(file) == [first, third]
    assert reopened(file) == [first, third]


def test_a_start_is_on_disk_before_it_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.28
    synced: list[bytes] = []
    box = StartOutbox(file)
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(file.read_bytes()))
    assert box.put(start("a"))
    assert box.put(start("b"))
    box.close()
    assert [b'"id":"a"' in content for content in synced] == [True, True]
    assert b'"id":"b"' in synced[-1]


def test_puts_that_wait_together_share_a_sync(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty threads wait behind the first sync; one more serves them all."""
    real, release, syncs = os.fsync, threading.Event(), []

    def slow(descriptor: int) -> None:
        syncs.append(descriptor)
        assert release.wait(30)
        real(descriptor)

    box = StartOutbox(file)
    monkeypatch.setattr(os, "fsync", slow)
    threads = [threading.Thread(target=box.put, args=(start(f"s{n}"),)) for n in range(21)]
    for thread in threads:
        thread.start()
    while box._written < 21:
        threading.Event().wait(0.01)
    release.set()
    for thread in threads:
        thread.join(30)
    assert len(syncs) == 2
    box.close()


def test_only_its_owner_may_read_it(file: Path) -> None:
    # specification 14.28
    previous = os.umask(0)
    try:
        file.touch(0o666)
        box = StartOutbox(file)
        box.put(start("a"))
        box._rewrite()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(previous)
    box.close()
    assert modes == {"starts": 0o600, "starts.lock": 0o600}


def test_an_empty_outbox_is_an_empty_file(file: Path) -> None:
    """Once everything is settled nothing of it is left in the file."""
    # specification 14.28
    box = StartOutbox(file)
    box.put(start("a"))
    box.put(start("b"))
    box.settle("a")
    assert file.stat().st_size > 0
    box.settle("b")
    assert file.read_bytes() == b""
    box.put(start("c"))
    box.close()
    assert [one.request_id for one in reopened(file)] == ["c"]


def test_settled_starts_leave_the_file_when_most_of_it_is_settled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.28
    monkeypatch.setattr(outbox, "LEAST_SETTLED_BYTES", 0)
    box = StartOutbox(file)
    box.put(start("kept", 100))
    sizes = []
    for number in range(50):
        box.put(start(f"s{number}", 100))
        box.settle(f"s{number}")
        sizes.append(file.stat().st_size)
    assert max(sizes) < 1500
    assert b'"id":"s49"' not in file.read_bytes()
    box.put(start("last"))
    box.close()
    assert [one.request_id for one in reopened(file)] == ["kept", "last"]


def test_its_size_is_bounded(file: Path) -> None:
    """A full outbox takes nothing more until something is settled; a rewriting makes the room."""
    # specification 14.28
    box = StartOutbox(file, largest_bytes=2_700)
    taken = [box.put(start(f"s{number}", 300)) for number in range(10)]
    assert taken == [True] * 5 + [False] * 5
    assert file.stat().st_size <= 2_700
    box.settle("s0")
    box.settle("s1")
    assert box.put(start("more", 300))
    assert not box.put(start("large", 2_700))
    box.close()
    assert file.stat().st_size <= 2_700
    assert [one.request_id for one in reopened(file)] == ["s2", "s3", "s4", "more"]


def test_a_torn_last_line_is_no_start_and_hurts_no_other(file: Path) -> None:
    """At every length of the last line."""
    # specification 14.28
    box = StartOutbox(file)
    box.put(start("a"))
    whole = len(file.read_bytes())
    box.put(start("b"))
    box.close()
    content = file.read_bytes()
    for length in range(whole, len(content)):
        file.write_bytes(content[:length])
        box = StartOutbox(file)
        assert [one.request_id for one in box.restored] == ["a"]
        assert box.unreadable == 0
        box.put(start("c"))
        box.close()
        assert [one.request_id for one in reopened(file)] == ["a", "c"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_line_costs_at_most_itself(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    # specification 14.28
    file = tmp_path_factory.mktemp("damaged") / "starts"
    box = StartOutbox(file)
    for number in range(4):
        box.put(start(f"s{number}"))
    box.close()
    lines = file.read_bytes().splitlines(keepends=True)
    hurt = data.draw(st.integers(0, 3))
    place = data.draw(st.integers(0, len(lines[hurt]) - 2))
    letter = data.draw(st.integers(0, 255).filter(lambda one: one not in (lines[hurt][place], 10)))
    lines[hurt] = lines[hurt][:place] + bytes([letter]) + lines[hurt][place + 1 :]
    file.write_bytes(b"".join(lines))
    box = StartOutbox(file)
    assert [one.request_id for one in box.restored] == [f"s{n}" for n in range(4) if n != hurt]
    assert box.unreadable == 1
    box.close()


@pytest.mark.parametrize(
    "record", ["{}", "[]", "7", '{"id":"a","at":"x","for":1,"request":""}', '{"id":"a","at":1,"for":1,"request":"é"}']
)
def test_a_line_of_another_form_is_damaged(record: str) -> None:
    text = record.encode()
    assert outbox._read(b"%08x %b\n" % (zlib.crc32(text), text)) is None


def test_a_second_client_is_told_that_it_is_in_use(file: Path, tmp_path: Path) -> None:
    """Of the same process, by another path too, and of another process; not after the first has closed it."""
    # specification 14.28
    box = StartOutbox(file)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for path in (file, link / "starts"):
        with pytest.raises(OutboxError, match="outbox_in_use") as raised:
            StartOutbox(path)
        assert raised.value.code == "outbox_in_use"
    program = "import sys; from fleet.planning_ceremony.client.outbox import StartOutbox; StartOutbox(sys.argv[1])"
    other = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, check=False)
    assert "OutboxError: outbox_in_use" in other.stderr
    box.close()
    StartOutbox(file).close()


def test_a_child_does_not_keep_the_lock_of_a_parent_that_has_died(file: Path) -> None:
    """The parent is killed while a forked child lives on."""
    # specification 14.28
    program = (
        "import os, sys, time; from fleet.planning_ceremony.client.outbox import StartOutbox;"
        "box = StartOutbox(sys.argv[1]); child = os.fork() or time.sleep(60); print(child, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, file], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait(30)
        StartOutbox(file).close()
    finally:
        os.kill(child, 9)
        process.stdout.close()


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A missing folder, a folder, and a link that leads elsewhere."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "no" / "starts", tmp_path, tmp_path / "link"):
        with pytest.raises(OutboxError, match="outbox_unusable") as raised:
            StartOutbox(path)
        assert raised.value.code == "outbox_unusable"
        assert str(path) in str(raised.value)
    assert not (tmp_path / "elsewhere").exists()


def test_a_failed_write_leaves_no_half_of_a_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after half of the line, or cannot be synced: the start is not accepted, and later ones are."""
    # specification 14.28
    box, real = StartOutbox(file), os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 40:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            box.put(start("a"))
    assert file.read_bytes() == b""

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            box.put(start("b"))
    assert box.put(start("c"))
    box.close()
    assert [one.request_id for one in reopened(file)] == ["c"]
    with pytest.raises(OSError, match="closed"):
        box.put(start("d"))


def test_a_rewriting_that_fails_keeps_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = StartOutbox(file)
    for number in range(3):
        box.put(start(f"s{number}"))

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            box._rewrite()
    box.put(start("s3"))
    box._rewrite()
    box.put(start("s4"))
    box.close()
    assert [one.request_id for one in reopened(file)] == [f"s{number}" for number in range(5)]


def test_threads_may_put_and_settle_at_the_same_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many rewritings in between."""
    monkeypatch.setattr(outbox, "LEAST_SETTLED_BYTES", 0)
    box = StartOutbox(file)

    def work(name: str) -> None:
        for number in range(60):
            box.put(start(f"{name}{number}"))
            if number % 3:
                box.settle(f"{name}{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    box.close()
    kept = {one.request_id for one in reopened(file)}
    assert kept == {f"{name}{number}" for name in "abcdef" for number in range(0, 60, 3)}
