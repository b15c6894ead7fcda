"""The program `ceremony`: the one place that knows both the command line and the worker behind it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from ceremony.cli import Root, run
from ceremony.cli.root import RunningWorker, SettingsInvalid

if TYPE_CHECKING:
    from ceremony.settings import Settings
    from tables.kinds import Kinds

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LAST_PORT = 65_535

# Imports are inside the functions: `ceremony get` must answer before Faust and pydantic would have been loaded.
# ruff: noqa: PLC0415


def settings(told: Mapping[str, Any]) -> Settings:
    """Settings from the environment and, before it, from `told`. Raises SettingsInvalid, a line for each variable."""
    from pydantic import ValidationError

    from ceremony.settings import Settings

    try:
        found = Settings(**told)
    except ValidationError as error:
        raise SettingsInvalid([problem(wrong) for wrong in error.errors()]) from None
    if problems := [*_levels(found.log_level), *_addresses(found)]:
        raise SettingsInvalid(problems)
    return found


def _levels(level: str) -> Iterator[str]:
    if level.upper() not in LEVELS:
        yield f"LOG_LEVEL: one of {', '.join(LEVELS)} is wanted (it is {level!r})"


def _addresses(found: Settings) -> Iterator[str]:
    """What would otherwise be found out half-way through the start, by a library, in its own words."""
    given = [("PLANNING_CEREMONY_GRPC_ADDR", found.grpc_addr), ("CEREMONY_HTTP_ADDR", found.http_addr)]
    if found.advertised_addr is not None:
        given.append(("CEREMONY_ADVERTISED_ADDR", found.advertised_addr))
    for name, address in given:
        host, _, port = address.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > LAST_PORT:
            yield f"{name}: host:port is wanted, for example 0.0.0.0:50057 (it is {address!r})"


def problem(found: Any) -> str:
    """`VARIABLE: what is wrong, and what it is now`."""
    from ceremony.settings import Settings

    # What an option told is known by the field's name; a person knows the variable.
    field = Settings.model_fields.get(str(found["loc"][0])) if found["loc"] else None
    name = (field.alias if field else None) or ".".join(map(str, found["loc"])) or "settings"
    message = str(found["msg"]).removeprefix("Value error, ")
    return f"{name}: {message} (it is {found.get('input')!r})"


def worker(given: Any) -> AbstractAsyncContextManager[RunningWorker]:
    from ceremony import heap
    from ceremony.worker import Worker

    collect_seldom()
    heap.allocate(heap.FAST if given.state == "memory" else heap.SMALL)
    return Worker(given)


def collect_seldom() -> None:
    """Records and rows hold no cycles: looking for some every 700 objects took a quarter of the CPU under load."""
    import gc

    gc.collect()
    gc.freeze()  # what was loaded stays; no collection looks at it again
    gc.set_threshold(50_000, 20, 50)


@asynccontextmanager
async def log(given: Any, clock: Any) -> AsyncIterator[Any]:
    """The log of such settings, as a program that is no worker uses it."""
    from streams.transport.app import open_log

    opened = open_log(given.log, clock)
    await opened.start()
    try:
        yield opened
    finally:
        await opened.stop()


def kinds() -> Kinds:
    from steps.registry import all_kinds

    return all_kinds()


def logs(level: str, style: str) -> None:
    from ceremony.logs import configure

    configure(level, style)


def on_loop(coroutine: Any) -> Any:
    """Run it on uvloop where there is one."""
    import asyncio

    try:
        import uvloop
    except ImportError:  # not made for every system
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


ROOT = Root(
    settings=settings,
    worker=worker,
    log=log,
    kinds=kinds,
    logs=logs,
    run=on_loop,
    # -P: a folder `tables` where the program was started is not ours.
    program=(sys.executable, "-P", "-m", "ceremony_engine"),
)


def main() -> None:
    """The entry point."""
    sys.exit(run(ROOT, sys.argv[1:]))


if __name__ == "__main__":
    main()
