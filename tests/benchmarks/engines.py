"""Other engines beside ours: a command measures one on the same machine and prints its figures as one JSON object."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from typing import Annotated, NamedTuple

import msgspec

from tests.benchmarks.processes import BenchmarkFailed

# How long a command may take.
SECONDS = 1800.0
Figure = Annotated[float, msgspec.Meta(gt=0)]


class OtherEngine(NamedTuple):
    """What measures another engine."""

    name: str
    command: str


class Figures(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What such a command prints, in the units of our own table; all but the first may be left out."""

    steps_per_s: Figure
    """Of ceremonies, or whatever it calls them, of five steps that compute nothing."""
    serial_p50_ms: Figure | None = None
    """From the call that starts one until the caller has seen its end; one at a time."""
    serial_p99_ms: Figure | None = None
    recovery_rows_per_s: Figure | None = None
    starts_per_s: Figure | None = None
    start_p99_ms: Figure | None = None
    """Of the call that starts one, at half of `starts_per_s`."""
    cpu_us_per_step: Figure | None = None
    """Of the engine's processes, without its log or database."""
    note: str = ""
    """Version, durability, how it was run: stands beside the figures."""


def parse_engine(text: str) -> OtherEngine:
    """`NAME=COMMAND`. Raises ValueError."""
    name, equals, command = text.partition("=")
    if not equals or not name.strip() or not command.strip():
        raise ValueError(f"{text!r}: NAME=COMMAND is wanted")
    try:
        shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return OtherEngine(name.strip(), command)


def measure(engine: OtherEngine, seconds: float = SECONDS) -> Figures:
    """Run the command, with all that it starts, and read what it prints. Raises BenchmarkFailed."""
    try:
        # A group of its own: what it leaves running would be measured with all that follows.
        process = subprocess.Popen(
            shlex.split(engine.command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise BenchmarkFailed(f"--engine {engine.name}: cannot be run: {error}") from None
    with process:
        try:
            printed, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise BenchmarkFailed(f"--engine {engine.name}: not done after {seconds:g} s; it was ended") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise BenchmarkFailed(f"--engine {engine.name}: ended with {process.returncode}: {last[-300:]}")
    return read(engine.name, printed)


def read(name: str, printed: bytes) -> Figures:
    """Raises BenchmarkFailed, which says which field is wrong."""
    try:
        return msgspec.json.decode(printed, type=Figures)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchmarkFailed(f"--engine {name}: prints no figures as docs/benchmarks.md wants them: {error}") from None
