"""The verb `reconcile`: compares the tables with the stores, row by row."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.clock import HostClock, new_id
from ceremony.cli.display import console, table
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.options import LogOption
from ceremony.cli.output import Format, OutputOption, emit_data, say
from ceremony.cli.rebuild import share_bar, shown
from ceremony.cli.republish import opened_log
from ceremony.cli.running import readable_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bridge.projection.comparison import Comparison, Difference
    from bridge.projection.store import Store
    from ceremony.settings import Settings

COLUMNS = ("store", "instance", "problem", "tables", "store has")


def reconcile(
    fix: Annotated[bool, typer.Option("--fix", help="Have the partitions that differ written again.")] = False,  # noqa: FBT002 - typer's way
    log: LogOption = None,
    topic_prefix: Annotated[str | None, typer.Option(help="Prefix of the topics.", show_default=False)] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare each row of the tables with Valkey and Neo4j. Exit 1 if one differs, and was not mended.

    Rows that a projector is about to write do not count. Settings come from the environment, as for `serve`; an
    embedded log must not be open elsewhere. With --fix, projectors write the partitions of these rows again.
    """
    from ceremony import logs, loop
    from ceremony.settings import read_settings

    options = {"log": log, "topic_prefix": topic_prefix}
    with readable_errors():
        settings = read_settings({name: value for name, value in options.items() if value is not None})
        if not settings.stores:
            raise CommandFailed("store_not_set", "no store is set", Exit.USAGE, remedy="set VALKEY_HOST or NEO4J_URI")
        logs.configure("ERROR", settings.log_format)
        rows, found = loop.run(_reconciled(settings, fix=fix))
    if output is Format.TABLE:
        _show(rows, found, fixed=fix)
    else:
        emit_data({"rows": rows, "fixed": fix, "differences": [one._asdict() for one in found]}, output)
    if found and not fix:
        raise CommandFailed


def _show(rows: int, found: Sequence[Difference], *, fixed: bool) -> None:
    if found:
        cells = [
            (one.store, one.instance_id, one.problem, str(one.table_version), str(one.store_version)) for one in found
        ]
        console().print(table(COLUMNS, cells, right=COLUMNS[3:]))
    end = ", written again" if fixed and found else ""
    say(f"{rows} rows compared, {len(found)} differ{end}")


async def _reconciled(settings: Settings, *, fix: bool) -> tuple[int, Sequence[Difference]]:
    """Return the number of rows in the tables, and the differences of all stores."""
    async with _opened(settings) as (comparison, stores):
        with share_bar() as bar:
            task = bar.add_task("read the tables", total=1.0)

            def progress(done: int, total: int) -> None:
                bar.update(task, completed=done / total if total else 1.0)

            rows = await comparison.read_tables(progress)
            found: list[Difference] = []
            for store in stores:
                bar.update(task, description=f"compare {store.name}", completed=0.0)
                found += await comparison.differences(store, progress)
        if fix:
            for store in stores:
                await _rewrite(store, {one.partition for one in found if one.store == store.name})
        return rows, found


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Comparison, Sequence[Store]]]:
    from bridge.projection.comparison import Comparison
    from ceremony.read_models import documents_of, stores
    from steps.registry import all_kinds
    from steps.secrets.redactor import TextRedactor

    clock = HostClock()
    found = stores(settings)
    try:
        async with opened_log(settings.log, clock) as log:
            documents = documents_of(settings, log, all_kinds(), TextRedactor(), clock)
            options = {"prefix": settings.topic_prefix, "partitions": settings.partitions}
            yield Comparison(log, documents, clock, **options), found  # type: ignore[arg-type]
    finally:
        for store in found:
            await store.close()


async def _rewrite(store: Store, partitions: set[int]) -> None:
    """Have partitions written again, and wait for the end. Raises CommandFailed where no projector begins."""
    from bridge.projection.rebuild import begin_rebuild

    if partitions:
        number = new_id()
        await begin_rebuild(store, number, partitions)
        await shown(store, number, len(partitions))
