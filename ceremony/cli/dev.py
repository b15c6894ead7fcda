"""The verb `dev`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from bridge.clock import HostClock
from ceremony.cli.display import console, pairs
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.options import DEFAULT_SERVER, GrpcOption, HttpOption, Level, LogOption, TriedOption
from ceremony.cli.output import Format, OutputOption, say
from ceremony.cli.running import Stop, leave_halfway, readable_errors, run_until, started
from ceremony.errors import KnobError

if TYPE_CHECKING:
    from ceremony.dev.stack import DevOptions
    from ceremony.worker import Worker

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for all data.")]
RAY = "Simulated Ray executor"
BEST_EXAMPLE = "backlog_review"


def dev(
    folder: FolderArgument = Path(".ceremony"),
    log: LogOption = None,
    grpc_addr: GrpcOption = None,
    http_addr: HttpOption = None,
    nats_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of nats-server.", show_default=False)
    ] = None,
    ceremonies_dir: TriedOption = None,
    topic_prefix: Annotated[
        str | None, typer.Option(help="Prefix of the topics, for a Kafka with other users.", show_default=False)
    ] = None,
    log_level: Annotated[Level, typer.Option(case_sensitive=False, help="Lowest level of log lines.")] = Level.WARNING,
    latency: Annotated[float, typer.Option(help="Mean seconds to an agent's answer.", rich_help_panel=RAY)] = 0.2,
    jitter: Annotated[float, typer.Option(help="Seconds to add or subtract.", rich_help_panel=RAY)] = 0.1,
    failure_rate: Annotated[float, typer.Option(help="Share of answers that failed.", rich_help_panel=RAY)] = 0.0,
    rejection_rate: Annotated[float, typer.Option(help="Share of tasks refused.", rich_help_panel=RAY)] = 0.0,
    duplicate_rate: Annotated[float, typer.Option(help="Share of answers sent twice.", rich_help_panel=RAY)] = 0.0,
    reorder_rate: Annotated[float, typer.Option(help="Share of answers held back.", rich_help_panel=RAY)] = 0.0,
    silence_rate: Annotated[float, typer.Option(help="Share of answers never sent.", rich_help_panel=RAY)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random choices.", rich_help_panel=RAY)] = 0,
    until_stdin_closes: Annotated[  # noqa: FBT002 - typer makes flags of them
        bool, typer.Option("--until-stdin-closes", hidden=True)
    ] = False,
    check: Annotated[bool, typer.Option("--check", hidden=True)] = False,  # noqa: FBT002 - as above
    output: OutputOption = Format.TABLE,
) -> None:
    """Run everything in one folder: engine, embedded log, a real NATS, a simulated Ray executor.

    Ctrl-C ends it. Start it again, and nothing is lost.
    """
    from ceremony import logs, loop
    from ceremony.dev.ray_simulation.knobs import Knobs
    from ceremony.dev.stack import DevOptions
    from ceremony.packaged import folder_to_try

    try:
        knobs = Knobs(latency, jitter, failure_rate, rejection_rate, duplicate_rate, reorder_rate, silence_rate, seed)
    except KnobError as error:
        raise CommandFailed(error.code, error.message, Exit.USAGE, remedy=error.remedy) from None
    definitions = folder_to_try(ceremonies_dir)
    options = DevOptions(folder, log, grpc_addr, http_addr, nats_port, definitions, topic_prefix, knobs)
    if check:
        check_settings(options)
        return
    with readable_errors(), private_files():
        logs.configure(log_level)
        loop.run(_dev(options, output, until_stdin_closes=until_stdin_closes))


def check_settings(options: DevOptions) -> None:
    """Raise CommandFailed for settings with which `dev` cannot run; nothing is made."""
    from ceremony.dev.stack import Dev

    with readable_errors():
        Dev(options, HostClock()).check()


@contextmanager
def private_files() -> Iterator[None]:
    """Make all new files readable for their owner only; restores the mask of the process at the end."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


async def _dev(options: DevOptions, output: Format, *, until_stdin_closes: bool) -> None:
    from ceremony.dev.stack import Dev

    dev = Dev(options, HostClock())
    stop = Stop(dev.children)
    if until_stdin_closes:
        end_with_stdin(stop)
    running: Worker | None = None
    try:
        async with started(stop, dev) as ready:
            if ready is None:
                return
            running = dev.worker
            if output is Format.TABLE:
                console().print(dev_panel(dev.running.data(), options.folder))
            else:
                say(json.dumps(dev.running.data()))
            sys.stdout.flush()
            await run_until(stop, running)
            if output is Format.TABLE:
                say("stopping; start it again and nothing is lost")
    finally:
        leave_halfway(running)


def end_with_stdin(stop: Stop) -> None:
    """Ask for the end when stdin closes. The parent process keeps it open, so this process never outlives it."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop.add_reader(sys.stdin.fileno(), readable)


def dev_panel(running: dict[str, Any], folder: Path) -> Panel:
    """Addresses and files of the running parts, and commands to try next."""
    found = folder == Path(".ceremony") or running["grpc"].endswith(f":{DEFAULT_SERVER.rpartition(':')[2]}")
    here = "" if found else f" --server {running['grpc']}"
    where = pairs(
        {
            "gRPC": running["grpc"],
            "health": f"{running['http']}/readyz   /livez   /metrics",
            "NATS": running["nats"],
            "Ray": f"{running['ray_executor']} (simulated)",
            "log": running["log"],
            "definitions": running["ceremonies_dir"],
        }
    )
    name = to_start(Path(running["ceremonies_dir"]))
    lines = (
        f"ceremony definitions{here}",
        f"ceremony start {name} --ceremony-id c1 --story-id s1 --input title='A first story'{here}",
        f"ceremony watch c1:s1{here}",
        f"ceremony approve c1:s1{here}",
        f"ceremony list{here}",
    )
    tries = Group(Text("Try in another terminal", style="bold"), *(Text(f"  {line}", style="cyan") for line in lines))
    return Panel(
        Group(where, "", tries),
        title="ceremony dev",
        subtitle="Ctrl-C ends it; start it again and nothing is lost",
        expand=False,
        padding=(1, 2),
    )


def to_start(folder: Path) -> str:
    """The definition to try first: the most telling example if the folder has it, else the first file."""
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    return names[0] if names and BEST_EXAMPLE not in names else BEST_EXAMPLE
