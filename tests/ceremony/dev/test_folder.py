"""The folder of `ceremony dev`: its name, its permissions, a log that is gone, and a terminal that is closed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from bridge.clock import HostClock
from ceremony.cli.dev import private_files
from ceremony.demo.engine import PROGRAM
from ceremony.dev.nats_server import NatsServer, left_over, write_config
from ceremony.dev.private import make_private_folder
from ceremony.dev.stack import expect_log
from ceremony.errors import DevError
from tests.dev_process import CEREMONIES, FREE, ROOT_FOLDER
from tests.services import free_port


def test_no_name_of_a_folder_reaches_the_config_of_nats(tmp_path: Path) -> None:
    folder = tmp_path / 'it is "so" }'
    text = write_config(folder, 4222, 8222).read_text()
    assert "so" not in text


async def test_nats_runs_in_a_folder_with_quotes(tmp_path: Path) -> None:
    # specification 22.15
    folder = tmp_path / 'it\'s "so"; $HOME }'
    server = NatsServer(folder, free_port(), free_port(), HostClock())
    await server.start()
    try:
        assert left_over(folder) == server.pid
        assert {"nats.conf", "nats.log", "nats.pid", "jetstream"} <= modes_below(folder).keys()
    finally:
        await server.stop()
    assert (modes_below(folder)["."], modes_below(folder)["nats.conf"]) == (0o700, 0o600)


def modes_below(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): stat.S_IMODE(file.stat().st_mode) for file in (folder, *folder.rglob("*"))}


def test_a_folder_of_an_earlier_run_is_made_private_and_one_of_the_user_is_left(tmp_path: Path) -> None:
    ours, foreign, new = tmp_path / "ours", tmp_path / "foreign", tmp_path / "new"
    for folder, inside in ((ours, "dev.lock"), (foreign, "thesis.tex")):
        folder.mkdir(mode=0o755)
        (folder / inside).touch()
    for folder in (ours, foreign, new):
        make_private_folder(folder, "dev.lock")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (ours, foreign, new)] == [0o700, 0o755, 0o700]


def test_the_mask_of_the_process_is_restored_after_dev() -> None:
    before = os.umask(0o022)
    try:
        with private_files():
            assert os.umask(0o077) == 0o077
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.mark.parametrize("content", [None, ""])
def test_a_log_of_the_last_run_that_is_gone_is_refused(tmp_path: Path, content: str | None) -> None:
    # specification 22.14
    file = tmp_path / "log.db"
    if content is not None:
        file.write_text(content)
    log = f"sqlite://{file}"
    expect_log({}, log)
    expect_log({"log": f"sqlite://{tmp_path}/other.db"}, log)
    with pytest.raises(DevError, match=r"log_missing: .*log\.db is missing or empty, and the last run wrote to it"):
        expect_log({"log": log}, log)
    file.write_text("a log")
    expect_log({"log": log}, log)


def test_a_terminal_that_is_closed_ends_dev_in_good_order(tmp_path: Path) -> None:
    """SIGHUP comes, and each write to the terminal fails from then on."""
    # specification 22.15
    folder = tmp_path / "of dev"
    terminal, inner = os.openpty()
    command = ("dev", str(folder), "--ceremonies-dir", str(CEREMONIES), *FREE, "--log-level", "info")
    process = subprocess.Popen(
        [*PROGRAM, *command],
        preexec_fn=partial(on_terminal, inner),  # noqa: PLW1509 - no thread runs in this test
        cwd=ROOT_FOLDER,
        env={**os.environ, "PYTHONPATH": str(ROOT_FOLDER)},
    )
    os.close(inner)
    read_until(terminal, b"Ctrl-C ends it")
    modes = modes_below(folder)
    assert {"log.db", "log.db-wal", "dev.json", "dev.lock", "nats/nats.log", "nats/jetstream"} <= modes.keys()
    assert [name for name, mode in modes.items() if mode & 0o077] == []
    os.close(terminal)
    assert exit_code(process, 30) == 0
    assert left_over(folder / "nats") is None
    assert not (folder / "log.db-wal").exists(), "the log was closed"


def on_terminal(inner: int) -> None:
    """Give this process the terminal, and SIGHUP its meaning, which tests under nohup would not have."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.login_tty(inner)


def exit_code(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for the end of a process; if it does not come, fail with the stacks of its threads, and end it."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        spy = [str(Path(sys.executable).with_name("py-spy")), "dump", "--pid", str(process.pid)]
        stacks = subprocess.run(spy, capture_output=True, text=True, check=False)
        process.kill()
        process.wait()
        raise AssertionError(f"it runs on after {seconds:g} s:\n{stacks.stdout}{stacks.stderr}") from None


def read_until(terminal: int, text: bytes, seconds: float = 60.0) -> None:
    found, until = b"", time.monotonic() + seconds
    while text not in found:
        assert time.monotonic() < until, found
        found += os.read(terminal, 65536)
