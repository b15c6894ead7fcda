"""The commands of the newcomer's pages run as they stand there, each page in an empty folder with the real program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import EXIT, REPEATED, RUNS_ON, Block, blocks
from tests.services import free_port

pytestmark = [pytest.mark.uncounted, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", DOCS / "first-ceremony.md", *sorted((DOCS / "writing").glob("*.md"))]
# Pages whose commands cannot run here; each block says why.
OTHERS = [ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if page not in PAGES)]
RUNNING = [page for page in PAGES if any(block.runs for block in blocks(page))]
PATIENCE_SECONDS = 60.0
# Makes `ceremony` the program of this working copy, and gives `ceremony dev` free ports.
SHIM = """#!/bin/sh
verb=$1
if [ "$verb" = dev ]; then
    shift
    set -- dev --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 --nats-port {nats_port} "$@"
fi
exec {python} -c 'import sys; sys.argv[0] = "ceremony"; from ceremony_engine import main; sys.exit(main())' "$@"
"""


class Terminal:
    """Runs the blocks of one page in one folder."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        path = f"{programs}:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CEREMONY_ACTOR": "newcomer"}
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self, block: Block) -> None:
        if block.file:
            target = self.folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, "utf-8")
        elif block.runs and block.mark == RUNS_ON:
            self._start(block)
        elif block.runs:
            self._finish(block)

    def _start(self, block: Block) -> None:
        command = ["sh", "-euc", block.text]
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )
        self._running.append(process)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._ready():
            written = (self.folder / "output").read_text()
            assert time.monotonic() < deadline and process.poll() is None, written
            time.sleep(0.1)

    def _ready(self) -> bool:
        """`ceremony dev` writes its addresses once it serves."""
        try:
            return bool(json.loads((self.folder / ".ceremony/dev.json").read_text())["grpc"])
        except (OSError, ValueError, KeyError):
            return False

    def _finish(self, block: Block) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            done = subprocess.run(
                ["sh", "-euc", block.text],
                cwd=self.folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
                check=False,
            )
            again = block.mark == REPEATED and done.returncode and time.monotonic() < deadline
            if not again:
                break
            time.sleep(0.2)
        place = f"{block.page.name}:{block.line}"
        assert done.returncode == block.exit_code, f"{place}: {block.text}\n{done.stdout}\n{done.stderr}"

    def end(self) -> None:
        for process in self._running:
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) is not None


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    programs, folder = tmp_path / "bin", tmp_path / "empty"
    programs.mkdir()
    folder.mkdir()
    shim = programs / "ceremony"
    shim.write_text(SHIM.format(python=sys.executable, nats_port=free_port()))
    shim.chmod(0o755)
    opened = Terminal(folder, programs)
    try:
        yield opened
    finally:
        opened.end()


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, terminal: Terminal) -> None:
    for block in blocks(page):
        terminal.run(block)


def test_a_failing_command_fails_the_page(tmp_path: Path, terminal: Terminal) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nceremony validate missing.yaml\n```\n")
    [block] = blocks(page)
    with pytest.raises(AssertionError, match="missing"):
        terminal.run(block)


def test_every_block_of_commands_runs_or_says_why_not() -> None:
    found = [block for page in (*PAGES, *OTHERS) for block in blocks(page)]
    assert [block for block in found if not block.known_mark] == []
    assert [(block.page.name, block.line) for block in found if block.runs and block.page in OTHERS] == []
    assert sum(block.runs for block in found) >= 20
    assert sum(block.mark.startswith(EXIT) for block in found) >= 1


def test_commands_are_in_blocks_that_the_tests_know() -> None:
    """A command in a block of another language, such as `bash`, would never run."""
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {"sh", "yaml", "text", "mermaid", "json", "python"}, (page.name, block.line)
            lines = block.text.splitlines()
            assert block.language == "sh" or not any(line.startswith("ceremony ") for line in lines), block
