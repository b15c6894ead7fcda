"""The verb `rehydrate`: restores ceremonies from the read models into a log that has lost them."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from bridge.clock import HostClock
from ceremony.cli.display import console, table
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.options import LogOption
from ceremony.cli.output import Format, OutputOption, clean, emit_data, say
from ceremony.cli.rebuild import StoreName, opened, share_bar
from ceremony.cli.republish import opened_log
from ceremony.cli.running import readable_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bridge.projection.rehydration import RehydrationProgress, Restoration
    from bridge.projection.store import SourceStore
    from ceremony.settings import Settings
    from ports.log import Log

COLUMNS = ("ceremony", "verdict", "from", "version", "why")
STYLES = {"sound": "green", "lossy": "bold yellow", "broken": "bold red", "skipped": "bright_black"}
# Lines of the table; `-o json` has all.
MOST_LINES = 1000


def rehydrate(
    source: Annotated[
        StoreName | None,
        typer.Option("--from", help="Only this store; without it, the newer form of both.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report; write nothing.")] = False,  # noqa: FBT002 - typer's way
    log: LogOption = None,
    topic_prefix: Annotated[str | None, typer.Option(help="Prefix of the topics.", show_default=False)] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Restore ceremonies from Valkey and Neo4j into a log that has lost them. Exit 1 if one is broken.

    A row of the log that is newer stays, so the verb can be interrupted and repeated. Workers may run; they fold the
    restored ceremonies, which go on to their end. Settings come from the environment, as for `serve`; an embedded log
    must not be open elsewhere.
    """
    from ceremony import logs, loop
    from ceremony.settings import read_settings

    options = {"log": log, "topic_prefix": topic_prefix}
    with readable_errors():
        settings = read_settings({name: value for name, value in options.items() if value is not None})
        if not settings.stores:
            raise CommandFailed("store_not_set", "no store is set", Exit.USAGE, remedy="set VALKEY_HOST or NEO4J_URI")
        logs.configure("ERROR", settings.log_format)
        found = loop.run(_rehydrated(settings, source, dry_run=dry_run))
    counts = Counter(str(one.verdict) for one in found)
    if output is Format.TABLE:
        _show(found, counts, dry_run=dry_run)
    else:
        emit_data(_data(found, counts, dry_run=dry_run), output)
    if counts["broken"]:
        raise CommandFailed


def _show(found: Sequence[Restoration], counts: Counter[str], *, dry_run: bool) -> None:
    """Print a line for each ceremony that is not sound, then the counts."""
    odd = [one for one in found if one.verdict != "sound"]
    if odd:
        rows = [
            (
                one.instance_id,
                Text(one.verdict, style=STYLES[one.verdict]),
                one.source,
                str(one.version),
                Text(clean("\n".join(f"{code}: {words}" for code, words in one.reasons)), overflow="fold"),
            )
            for one in odd[:MOST_LINES]
        ]
        console().print(table(COLUMNS, rows, right=("version",)))
    if len(odd) > MOST_LINES:
        say(f"{len(odd) - MOST_LINES} more; -o json has all")
    done = "would be restored" if dry_run else "restored"
    restored = counts["sound"] + counts["lossy"]
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in STYLES)
    say(f"{len(found)} ceremonies: {parts}; {restored} {done}")


def _data(found: Sequence[Restoration], counts: Counter[str], *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "counts": {verdict: counts[verdict] for verdict in STYLES},
        "ceremonies": [
            {
                "instance_id": one.instance_id,
                "verdict": str(one.verdict),
                "from": one.source,
                "version": one.version,
                "reasons": [{"code": code, "message": words} for code, words in one.reasons],
            }
            for one in found
        ],
    }


async def _rehydrated(settings: Settings, source: StoreName | None, *, dry_run: bool) -> list[Restoration]:
    from ceremony.read_models import stores

    if source is not None:
        await opened(settings, source).close()  # refuses a store that is not set
    found = stores(settings)
    try:
        sources = [store for store in found if source is None or store.name == source]
        outcomes = await _from(sources, settings, dry_run=dry_run)
        if not dry_run:
            await _follow_from_start(settings)
        return outcomes
    finally:
        for store in found:
            await store.close()


async def _follow_from_start(settings: Settings) -> None:
    """Let the projectors read the log from its start: positions in the stores are those of the log that was lost."""
    from bridge.projection.store import Place, StoreError
    from ceremony.read_models import followers_of

    for name in settings.stores:
        for part in followers_of(settings, name):
            try:
                await part.set_places(dict.fromkeys(range(settings.partitions), Place(0).text))
            except StoreError as error:
                say(f"{part.name} is not up to date: {error.reason}; `ceremony rebuild {name}` once it is", err=True)
            finally:
                await part.close()


@asynccontextmanager
async def _opened(url: str, clock: HostClock, *, dry_run: bool, **options: Any) -> AsyncIterator[Log]:
    """Open the log; for a report on a file that does not exist, an empty one that is gone afterwards."""
    with TemporaryDirectory(prefix="ceremony-") as folder:
        empty = f"sqlite://{folder}/empty.db"
        async with opened_log(empty if dry_run and _is_missing_file(url) else url, clock, **options) as log:
            yield log


def _is_missing_file(url: str) -> bool:
    from yarl import URL

    return url.startswith("sqlite://") and not Path(URL(url).path).exists()


async def _from(sources: Sequence[SourceStore], settings: Settings, *, dry_run: bool) -> list[Restoration]:
    from bridge.projection.rehydration import Rehydration
    from steps.registry import all_kinds
    from streams.topology import every_topic

    clock = HostClock()
    created = {"replication": settings.replication_factor, "topic_config": settings.topic_config}
    async with _opened(settings.log, clock, dry_run=dry_run, **created) as log:
        if not dry_run:
            await log.create(every_topic(settings.topic_prefix, settings.partitions))
        with share_bar() as bar:
            task = bar.add_task("rehydrate", total=1.0)

            def progress(now: RehydrationProgress) -> None:
                bar.update(task, completed=now.read / now.total if now.total else 1.0)

            rehydration = Rehydration(
                log,
                sources,
                clock,
                all_kinds(),
                prefix=settings.topic_prefix,
                partitions=settings.partitions,
                dry_run=dry_run,
                on_progress=progress,
            )
            return [one async for page in rehydration.run() for one in page]
