"""The verbs that run the engine: `serve`, `dev` and `demo`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from ceremony.cli.connection import DEFAULT_SERVER
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.output import Format, OutputOption, console, pairs, say
from ceremony.cli.root import Root, RunningWorker, SettingsInvalid

Started = TypeVar("Started")


class Level(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where everything is kept.")]
LogOption = Annotated[
    str | None,
    typer.Option("--log", help="The log: kafka://host:port or sqlite:///path.", show_default=False),
]
RoleOption = Annotated[
    str | None,
    typer.Option(
        help="The parts to run, with commas between: engine (agents, timers, front), bridge (NATS in and out);"
        " default: CEREMONY_ROLE, else both.",
        show_default=False,
    ),
]
GrpcOption = Annotated[str | None, typer.Option(help="Where gRPC listens, host:port.", show_default=False)]
HttpOption = Annotated[str | None, typer.Option(help="Where health and metrics listen.", show_default=False)]
CeremoniesOption = Annotated[
    Path | None, typer.Option(help="Folder of definitions; default: CEREMONIES_DIR, else specs/ceremonies.")
]
TriedOption = Annotated[
    Path | None,
    typer.Option(
        "--ceremonies-dir",
        help="Folder of definitions; default: CEREMONIES_DIR, else specs/ceremonies, else the examples.",
        show_default=False,
    ),
]
BEST_EXAMPLE = "backlog_review"
RAY = "Simulated Ray executor"
LevelOption = Annotated[
    Level | None, typer.Option(case_sensitive=False, help="Of the log on stderr.", show_default=False)
]


def add_verbs(app: typer.Typer, root: Root) -> None:
    """Add the verbs; what they run comes from the program's root."""
    app.command(rich_help_panel="Run")(serve_verb(root))
    app.command(rich_help_panel="Run")(dev_verb(root))
    app.command(rich_help_panel="Run")(demo_verb(root))


def serve_verb(root: Root) -> Callable[..., None]:
    def serve(
        role: RoleOption = None,
        log: LogOption = None,
        grpc_addr: GrpcOption = None,
        http_addr: HttpOption = None,
        ceremonies_dir: CeremoniesOption = None,
        log_level: LevelOption = None,
    ) -> None:
        """Run the engine. Settings come from the environment, options win; SIGTERM and Ctrl-C end it cleanly."""
        told = {
            "roles": role,
            "log": log,
            "grpc_addr": grpc_addr,
            "http_addr": http_addr,
            "ceremonies_dir": ceremonies_dir,
            "log_level": log_level,
        }
        with readable_errors():
            settings = root.settings({name: value for name, value in told.items() if value is not None})
            root.logs(settings.log_level, settings.log_format)
            root.run(_serve(root, settings))

    return serve


async def _serve(root: Root, settings: Any) -> None:
    stop = Stop()
    running: RunningWorker | None = None
    try:
        async with started(stop, root.worker(settings)) as worker:
            if worker is not None:
                running = worker
                await run_until(stop, worker)
    finally:
        leave_halfway(running)


def leave_halfway(worker: RunningWorker | None) -> None:
    """Does not return when the worker was stopped half-way.

    What still waits for its neighbours could only report, at length, that it was called off.
    """
    if worker is not None and worker.halfway:
        sys.stdout.flush()
        os._exit(Exit.FAILED if worker.failure else Exit.OK)


async def run_until(stop: Stop, worker: RunningWorker) -> None:
    """Returns when a signal came. Raises CommandFailed when a part of the worker has failed for good."""
    from bridge.clock import HostClock  # noqa: PLC0415 - asyncio's servers are loaded by who runs one
    from ceremony.dev.stack import reason  # noqa: PLC0415 - and so are nats and gRPC

    clock = HostClock()
    waiting = [clock.spawn(worker.ended(), name="ended"), clock.spawn(stop.wait(), name="stop")]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    if not stop.wanted:
        raise CommandFailed("worker_failed", reason(worker.failure))


class Stop:
    """The first SIGTERM or Ctrl-C asks for a clean end; a second Ctrl-C ends the process at once."""

    def __init__(self, children: Callable[[], Iterable[int]] = tuple) -> None:
        """`children`: the process ids that must not outlive us, asked for when the end is sudden."""
        self._event = asyncio.Event()
        self._children = children
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._event.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)

    @property
    def wanted(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    def set(self) -> None:
        self._event.set()

    def _interrupted(self) -> None:
        if not self._event.is_set():
            self._event.set()
            return
        for pid in self._children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(Exit.INTERRUPTED)


@contextmanager
def readable_errors() -> Iterator[None]:
    """What is wrong with settings, addresses and neighbours, as one line each."""
    try:
        yield
    except SettingsInvalid as error:
        for problem in error.problems:
            say(f"setting_invalid: {problem}", err=True)
        raise CommandFailed from None
    except CommandFailed:
        raise
    except OSError as error:
        raise CommandFailed("cannot_start", " ".join(str(error.strerror or error).split())) from None
    except Exception as error:
        code = getattr(error, "code", None) or str(error).partition(": ")[0]
        if not (isinstance(code, str) and code.isidentifier() and code.islower()):
            raise
        # Errors of ours carry a stable code, or begin with it.
        raise CommandFailed(code, str(error).removeprefix(f"{code}: ")) from None


def dev_verb(root: Root) -> Callable[..., None]:
    def dev(
        folder: FolderArgument = Path(".ceremony"),
        log: LogOption = None,
        grpc_addr: GrpcOption = None,
        http_addr: HttpOption = None,
        nats_port: Annotated[
            int | None, typer.Option(min=1, max=65535, help="Where nats-server listens.", show_default=False)
        ] = None,
        ceremonies_dir: TriedOption = None,
        topic_prefix: Annotated[
            str | None, typer.Option(help="Of the topics, on a Kafka that others use too.", show_default=False)
        ] = None,
        log_level: Annotated[Level, typer.Option(case_sensitive=False, help="Of the log on stderr.")] = Level.WARNING,
        latency: Annotated[float, typer.Option(help="Mean seconds to an agent's answer.", rich_help_panel=RAY)] = 0.2,
        jitter: Annotated[float, typer.Option(help="Seconds earlier or later.", rich_help_panel=RAY)] = 0.1,
        failure_rate: Annotated[float, typer.Option(help="Share of answers that failed.", rich_help_panel=RAY)] = 0.0,
        rejection_rate: Annotated[float, typer.Option(help="Share of tasks refused.", rich_help_panel=RAY)] = 0.0,
        duplicate_rate: Annotated[float, typer.Option(help="Share of answers sent twice.", rich_help_panel=RAY)] = 0.0,
        reorder_rate: Annotated[float, typer.Option(help="Share of answers held back.", rich_help_panel=RAY)] = 0.0,
        silence_rate: Annotated[float, typer.Option(help="Share of answers never sent.", rich_help_panel=RAY)] = 0.0,
        seed: Annotated[int, typer.Option(help="Another seed, other fates.", rich_help_panel=RAY)] = 0,
        until_stdin_closes: Annotated[  # noqa: FBT002 - typer makes flags of them
            bool, typer.Option("--until-stdin-closes", hidden=True)
        ] = False,
        output: OutputOption = Format.TABLE,
    ) -> None:
        """Run everything in one folder: the engine on an embedded log, a real NATS, a simulated Ray executor.

        Ctrl-C and start it again: nothing is lost.
        """
        from ceremony.dev.ray_simulation.knobs import KnobError, Knobs  # noqa: PLC0415 - as above
        from ceremony.dev.stack import DevOptions  # noqa: PLC0415 - nats and gRPC servers are loaded by who runs them
        from ceremony.packaged import folder_to_try  # noqa: PLC0415 - as above

        try:
            knobs = Knobs(
                latency, jitter, failure_rate, rejection_rate, duplicate_rate, reorder_rate, silence_rate, seed
            )
        except KnobError as error:
            raise CommandFailed(error.code, str(error), Exit.USAGE) from None
        definitions = folder_to_try(ceremonies_dir)
        options = DevOptions(folder, log, grpc_addr, http_addr, nats_port, definitions, topic_prefix, knobs)
        with readable_errors():
            root.logs(log_level, "console")
            root.run(_dev(root, options, output, until_stdin_closes=until_stdin_closes))

    return dev


async def _dev(root: Root, options: Any, output: Format, *, until_stdin_closes: bool) -> None:
    from bridge.clock import HostClock  # noqa: PLC0415 - as above
    from ceremony.dev.stack import Dev  # noqa: PLC0415 - as above

    dev = Dev(options, root, HostClock())
    stop = Stop(dev.children)
    if until_stdin_closes:
        end_with_stdin(stop)
    running: RunningWorker | None = None
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


@asynccontextmanager
async def started(stop: Stop, made: AbstractAsyncContextManager[Started]) -> AsyncIterator[Started | None]:
    """Enter what was made, unless a signal comes while it starts: then what has started is stopped, and None given."""
    from bridge.clock import HostClock  # noqa: PLC0415 - as above

    clock = HostClock()
    entering = clock.spawn(made.__aenter__(), name="start")
    stopping = clock.spawn(stop.wait(), name="stop")
    try:
        await asyncio.wait([entering, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not entering.done():
            entering.cancel()
    if stop.wanted:
        with suppress(asyncio.CancelledError, Exception):
            await entering
            await made.__aexit__(None, None, None)
        yield None
        return
    entered = await entering
    try:
        yield entered
    finally:
        await made.__aexit__(None, None, None)


def end_with_stdin(stop: Stop) -> None:
    """Whoever started us keeps our stdin open: when it ends, in whatever way, so do we."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop.add_reader(sys.stdin.fileno(), readable)


def dev_panel(running: dict[str, Any], folder: Path) -> Panel:
    """Where everything is, and what to try next."""
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
    """The definition to try first: the example that shows most, where it is there."""
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    return names[0] if names and BEST_EXAMPLE not in names else BEST_EXAMPLE


def demo_verb(root: Root) -> Callable[..., None]:
    def demo(
        dev_options: Annotated[
            list[str] | None,
            typer.Argument(metavar="-- OPTIONS OF DEV", help="Passed on to `ceremony dev`, as -- --duplicate-rate 0.2"),
        ] = None,
        count: Annotated[int, typer.Option("-n", "--count", min=1, max=100_000, help="How many to start.")] = 200,
        definitions: Annotated[
            list[str] | None,
            typer.Option("-d", "--definition", help="Only these; may be repeated. Default: a mix.", show_default=False),
        ] = None,
        log: LogOption = None,
        folder: Annotated[
            Path | None, typer.Option(help="Keep everything there; default: a temporary one.", show_default=False)
        ] = None,
        ceremonies_dir: TriedOption = None,
        timeout: Annotated[float, typer.Option(min=5, help="Seconds for all of it.")] = 300,
        concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Starts in flight.")] = 32,
        output: OutputOption = Format.TABLE,
    ) -> None:
        """Run the main job for all to see: start ceremonies, approve their gates, and account for every one of them.

        What happened is counted by a consumer of the stream CEREMONY, not by the engine. Exit 0 only if it all adds up.
        """
        from ceremony.demo.run import DemoOptions  # noqa: PLC0415 - as above
        from ceremony.demo.screen import show  # noqa: PLC0415 - nats is loaded by who speaks to it
        from ceremony.packaged import folder_to_try  # noqa: PLC0415 - as above

        options = DemoOptions(
            count=count,
            definitions=tuple(definitions or ()),
            log=log,
            folder=folder,
            ceremonies_dir=folder_to_try(ceremonies_dir),
            timeout=timeout,
            concurrency=concurrency,
            dev_options=tuple(dev_options or ()),
        )
        with readable_errors():
            root.logs("WARNING", "console")
            show(root, options, output)

    return demo
