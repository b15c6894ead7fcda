"""The verbs of the command line: one table, and a group that imports a verb's module only when the verb is used.

`ceremony --help` and shell completion answer from the table alone. Therefore its help texts repeat the first
paragraph of each verb's docstring; a test keeps them equal.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from ceremony.cli.errors import EPILOG
from ceremony.cli.plain_help import PLAIN, PlainGroup, typer_command, write_sections
from ceremony.version import VERSION

RUN, CEREMONIES, LOOK, FILES, REPAIR = "Run", "Ceremonies", "Look", "Definitions", "Repair"


class Verb(NamedTuple):
    """One verb. Its code is the function `name` in the module `name`, unless `code` names another place."""

    name: str
    panel: str
    help: str
    code: str = ""
    """`module:function` under `ceremony.cli`."""


VERBS = (
    Verb("serve", RUN, "Run the engine. Settings come from the environment; options win over it."),
    Verb("dev", RUN, "Run everything in one folder: engine, embedded log, a real NATS, a simulated Ray executor."),
    Verb("demo", RUN, "Start ceremonies on an engine of its own, approve their gates, and account for every one."),
    Verb("start", CEREMONIES, "Start a ceremony. Repeating the same start is safe: nothing starts twice."),
    Verb("approve", CEREMONIES, "Approve a human gate or a human guard."),
    Verb("reject", CEREMONIES, "Reject a human gate. Its step fails; `on_failure` of the definition decides the rest."),
    Verb("trigger", CEREMONIES, "Ask for a transition out of the present state, by its trigger."),
    Verb("cancel", CEREMONIES, "Cancel ceremonies. Their steps in flight are cancelled first."),
    Verb("pause", CEREMONIES, "Pause ceremonies. Answers are recorded, nothing new starts, timers stop."),
    Verb("resume", CEREMONIES, "Resume paused ceremonies. Their timers go on with the time that was left."),
    Verb("retry", CEREMONIES, "Retry a failed step with a new budget. A FAILED or TIMED_OUT ceremony opens again."),
    Verb("run", CEREMONIES, "Run a step that the start did not select."),
    Verb("get", LOOK, "Show one ceremony: its state, its steps, and its waits."),
    Verb("list", LOOK, "List ceremonies, newest first.", code="list:list_"),
    Verb("watch", LOOK, "Follow a ceremony to its end. Exit 0 if it completed, 1 if it ended otherwise."),
    Verb("history", LOOK, "Show every event of a ceremony, oldest first, with actor and reason."),
    Verb("doctor", LOOK, "Show stuck and waiting ceremonies, with remedies. Exit 1 if one is stuck or not served."),
    Verb("definitions", LOOK, "List the definitions that the engine sees now, with the problems of invalid ones."),
    Verb("deadletters", LOOK, "Look at messages that could not be processed, and send them back."),
    Verb("validate", FILES, "Check definitions. Exit 0 if all are valid, else 1 with every reason."),
    Verb("graph", FILES, "Draw a definition: for a terminal, as Mermaid, or as DOT for Graphviz."),
    Verb("init", FILES, "Write a first ceremony, and the schema by which editors check and complete it."),
    Verb("schema", FILES, "Print the JSON Schema of a ceremony definition, for editors and other tools."),
    Verb("republish", REPAIR, "Publish all retained events again, with their ids, to restore the stream CEREMONY."),
    Verb(
        "rebuild",
        REPAIR,
        "Write a read model again from the log, while the engine runs, and remove rows that the tables do not have.",
    ),
    Verb(
        "reconcile",
        REPAIR,
        "Compare each row of the tables with Valkey and Neo4j. Exit 1 if one differs, and was not mended.",
    ),
    Verb(
        "rehydrate",
        REPAIR,
        "Restore ceremonies from Valkey and Neo4j into a log that has lost them. Exit 1 if one is broken.",
    ),
)  # fmt: skip


@cache
def command() -> Any:
    """The whole program as a click command."""
    app = typer.Typer(
        cls=VerbGroup,
        name="ceremony",
        help="The ceremony engine: run it, start ceremonies, follow and decide them.",
        epilog=EPILOG,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        **PLAIN,
    )
    app.callback()(_options)
    return typer.main.get_command(app)


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the release and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Take the options of the program itself."""


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if wanted:
        typer.echo(f"ceremony {VERSION}")
        raise typer.Exit


class VerbGroup(PlainGroup):
    """Lists the verbs from the table, and loads the one that is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {verb.name: TyperCommand(verb.name, help=verb.help) for verb in VERBS}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        return name, found and load(found.name), rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        write_sections(formatter, ((verb.panel, (verb.name, verb.help)) for verb in VERBS))


@cache
def load(name: str) -> Any:
    """The click command of a verb, with all its options."""
    verb = next(verb for verb in VERBS if verb.name == name)
    module, _, attribute = (verb.code or f"{name}:{name}").partition(":")
    code = getattr(import_module(f"ceremony.cli.{module}"), attribute)
    if not isinstance(code, typer.Typer):
        return typer_command(name, code)
    group = typer.main.get_command(code)
    group.name = name
    return group
