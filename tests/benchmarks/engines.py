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

# Time limit of a command.
SECONDS = 1800.0
Figure = Annotated[float, msgspec.Meta(gt=0)]


class OtherEngine(NamedTuple):
    """A command that measures another engine."""

    name: str
    command: str


class Figures(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The output of such a command, in the units of our own table; only the first figure is required."""

    steps_per_s: Figure
    """Steps of chains of five steps that compute nothing."""
    serial_p50_ms: Figure | None = None
    """From the call that starts a chain until the caller has seen its end; one chain at a time."""
    serial_p99_ms: Figure | None = None
    recovery_rows_per_s: Figure | None = None
    starts_per_s: Figure | None = None
    start_p99_ms: Figure | None = None
    """Time of the call that starts a chain, at half of `starts_per_s`."""
    cpu_us_per_step: Figure | None = None
    """CPU of the engine's processes, without its log or database."""
    note: str = ""
    """Version, durability, method; shown beside the figures."""


def parse_engine(text: str) -> OtherEngine:
    """Parse `NAME=COMMAND`. Raises ValueError."""
    name, equals, command = text.partition("=")
    if not equals or not name.strip() or not command.strip():
        raise ValueError(f"{text!r}: NAME=COMMAND is wanted")
    try:
        shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return OtherEngine(name.strip(), command)


def measure(engine: OtherEngine, seconds: float = SECONDS) -> Figures:
    """Run the command, read its output, and end every process that it started. Raises BenchmarkFailed."""
    try:
        # A group of its own: a process left running would take CPU from all later measurements.
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
    """Decode the figures. Raises BenchmarkFailed, which names the wrong field."""
    try:
        return msgspec.json.decode(printed, type=Figures)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchmarkFailed(f"--engine {name}: prints no figures as docs/benchmarks.md wants them: {error}") from None
