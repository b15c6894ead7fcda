"""The verb `serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ceremony.cli.options import CeremoniesOption, GrpcOption, HttpOption, Level, LogOption
from ceremony.cli.running import Stop, leave_halfway, readable_errors, run_until, started

if TYPE_CHECKING:
    from ceremony.settings import Settings
    from ceremony.worker import Worker

WorkerRoleOption = Annotated[
    str | None,
    typer.Option(
        help="The parts to run, with commas between: engine (agents, timers, front), bridge (NATS in and out),"
        " projector (Valkey, Neo4j); default: CEREMONY_ROLE, else all that have a neighbour.",
        show_default=False,
    ),
]
LevelOption = Annotated[
    Level | None, typer.Option(case_sensitive=False, help="Lowest level of log lines on stderr.", show_default=False)
]


def serve(
    role: WorkerRoleOption = None,
    log: LogOption = None,
    grpc_addr: GrpcOption = None,
    http_addr: HttpOption = None,
    ceremonies_dir: CeremoniesOption = None,
    log_level: LevelOption = None,
) -> None:
    """Run the engine. Settings come from the environment; options win over it.

    SIGTERM or Ctrl-C ends it cleanly.
    """
    from ceremony import logs, loop
    from ceremony.settings import read_settings

    options = {
        "roles": role,
        "log": log,
        "grpc_addr": grpc_addr,
        "http_addr": http_addr,
        "ceremonies_dir": ceremonies_dir,
        "log_level": log_level,
    }
    with readable_errors():
        settings = read_settings({name: value for name, value in options.items() if value is not None})
        logs.configure(settings.log_level, settings.log_format)
        loop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    from ceremony.worker import worker_of_process

    stop = Stop()
    running: Worker | None = None
    try:
        async with started(stop, worker_of_process(settings)) as worker:
            if worker is not None:
                running = worker
                await run_until(stop, worker)
    finally:
        leave_halfway(running)
