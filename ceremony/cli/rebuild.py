"""The verb `rebuild`: writes a read model again from the log, while the engine runs."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bridge.clock import HostClock, new_id
from ceremony.cli.display import console
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.output import Format, OutputOption, emit_data, say
from ceremony.cli.running import readable_errors

if TYPE_CHECKING:
    from bridge.projection.rebuild import RebuildProgress
    from bridge.projection.store import PlacedStore, SourceStore
    from ceremony.settings import Settings

LOOK_SECONDS = 0.5
# Projectors look for a rebuild every two seconds.
BEGIN_SECONDS = 30.0


class StoreName(StrEnum):
    VALKEY = "valkey"
    NEO4J = "neo4j"


StoreArgument = Annotated[StoreName, typer.Argument(help="The store whose rows are written again.", show_default=False)]


def rebuild(
    store: StoreArgument,
    topic_prefix: Annotated[str | None, typer.Option(help="Prefix of the topics.", show_default=False)] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Write a read model again from the log, while the engine runs, and remove rows that the tables do not have.

    The projectors do the work, and this verb shows their progress; interrupted, it stops showing. The addresses of the
    stores come from the environment, as for `serve`. A store that is found empty is rebuilt without this verb.
    """
    from ceremony import logs, loop
    from ceremony.settings import read_settings

    with readable_errors():
        settings = read_settings({} if topic_prefix is None else {"topic_prefix": topic_prefix})
        logs.configure("ERROR", settings.log_format)
        done = loop.run(_rebuild(settings, store))
    if output is Format.TABLE:
        say(f"{store}: {done.done} of {done.partitions} partitions rebuilt")
    else:
        emit_data({"store": store.value, "partitions": done.partitions, "rebuilt": done.done}, output)


async def _rebuild(settings: Settings, name: StoreName) -> RebuildProgress:
    from bridge.projection.rebuild import begin_rebuild
    from ceremony.read_models import followers_of

    await opened(settings, name).close()  # refuses a store that is not set
    parts = followers_of(settings, name)
    number = new_id()
    try:
        for part in parts:
            await begin_rebuild(part, number, range(settings.partitions))
        found = [await shown(part, number, settings.partitions) for part in parts]
        return found[0]
    finally:
        for part in parts:
            await part.close()


def opened(settings: Settings, name: str) -> SourceStore:
    """Return a store of the settings. Raises CommandFailed where it is not set."""
    from ceremony.read_models import stores

    for store in stores(settings):
        if store.name == name:
            return store
    variable = "VALKEY_HOST" if name == "valkey" else "NEO4J_URI"
    raise CommandFailed("store_not_set", f"{name} is not set", Exit.USAGE, remedy=f"set {variable}")


async def shown(store: PlacedStore, number: str, partitions: int) -> RebuildProgress:
    """Show the progress until the rebuild has ended. Raises CommandFailed where no projector begins it."""
    from bridge.projection.rebuild import rebuild_progress

    clock = HostClock()
    begun = clock.monotonic()
    with share_bar() as bar:
        task = bar.add_task(f"rebuild {store.name}", total=1.0)
        while (now := await rebuild_progress(store, number, partitions)).done < partitions:
            bar.update(task, completed=now.share)
            if not now.begun and clock.monotonic() - begun > BEGIN_SECONDS:
                raise CommandFailed(
                    "rebuild_not_begun",
                    f"no projector has begun within {BEGIN_SECONDS:g} s",
                    Exit.UNAVAILABLE,
                    remedy="start a worker with the role projector: it begins by itself",
                )
            await clock.sleep(LOOK_SECONDS)
    return now


def share_bar() -> Progress:
    """A bar on stderr for a share from 0 to 1; nothing without a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty())
