"""The verb `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceremony.cli.options import LogOption, TriedOption
from ceremony.cli.output import Format, OutputOption
from ceremony.cli.running import readable_errors

if TYPE_CHECKING:
    from ceremony.demo.run import DemoOptions


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
    """Start ceremonies on an engine of its own, approve their gates, and account for every one.

    A consumer of the stream CEREMONY counts the events; the engine is not asked. Exit 0 only if everything adds up.
    """
    from ceremony import logs
    from ceremony.cli.demo_screen import show
    from ceremony.demo.run import DemoOptions
    from ceremony.packaged import folder_to_try

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
    check_engine(options)
    with readable_errors():
        logs.configure("WARNING")
        show(options, output)


def check_engine(options: DemoOptions) -> None:
    """End with the error of `ceremony dev` for options with which it cannot run, before anything is made."""
    from ceremony.cli.verbs import load
    from ceremony.demo.run import engine_options

    arguments = engine_options(options, options.folder or Path(), "demo")
    ended = load("dev").main(["--check", *arguments], prog_name="ceremony dev", standalone_mode=False)
    if ended is not None:  # its help was shown
        raise typer.Exit(ended)
