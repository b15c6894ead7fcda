"""The demo's engine: `ceremony dev` as a child process that never outlives the demo."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ceremony.errors import DemoError
from ports.clock import Clock

# The command that starts this program again. -P: a folder `tables` in the current folder is not ours.
PROGRAM = (sys.executable, "-P", "-m", "ceremony_engine")
# In its folder: the lines of its stderr.
LOG = "dev.log"
STOP_SECONDS = 20.0
# Lines of its log that are shown when it ended by itself.
LAST_WORDS = 8


@dataclass(slots=True)
class EngineProcess:
    """A running `ceremony dev`."""

    running: dict[str, Any]
    """The content of its `dev.json`."""
    ended: asyncio.Task[int]
    log: Path
    """The file of its stderr."""


@contextlib.asynccontextmanager
async def engine(command: Sequence[str], folder: Path, clock: Clock) -> AsyncIterator[EngineProcess]:
    """Start it and wait until it is ready; end it after the block, by SIGKILL if it does not end by itself.

    It also ends when its stdin closes, so it never outlives this process. Raises DemoError.
    """
    with opened(folder / LOG) as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C reaches only this process, which ends the engine after its clients
        )
    ended = clock.spawn(process.wait(), name="engine")
    try:
        yield EngineProcess(await _first_line(process, folder / LOG), ended, folder / LOG)
    finally:
        await _end(process, clock)
        await ended


async def _first_line(process: asyncio.subprocess.Process, log: Path) -> dict[str, Any]:
    line = await process.stdout.readline() if process.stdout is not None else b""
    try:
        found = json.loads(line)
    except ValueError:
        raise DemoError("engine_not_started", f"`ceremony dev` has ended: {last_words(log)}") from None
    return dict(found)


def opened(log: Path) -> BinaryIO:
    """Open the log file of the engine for appending."""
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("ab")


def last_words(log: Path) -> str:
    """The last lines of its log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LAST_WORDS:]) or "its log is empty"


async def _end(process: asyncio.subprocess.Process, clock: Clock) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with clock.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
