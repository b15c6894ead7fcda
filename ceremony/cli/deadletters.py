"""The verbs `deadletters list`, `show` and `replay`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ceremony.cli import views
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import console
from ceremony.cli.list import LARGEST_PAGE
from ceremony.cli.options import ActorOption, ReasonOption, login
from ceremony.cli.output import Format, OutputOption, emit_data, say
from ceremony.cli.plain_help import PLAIN, PlainCommand, PlainGroup

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

deadletters = typer.Typer(
    cls=PlainGroup,
    help="Look at messages that could not be processed, and send them back.",
    no_args_is_help=True,
    add_completion=False,
    **PLAIN,
)


@deadletters.command("list", cls=PlainCommand)
def list_dead_letters(
    topic: Annotated[str | None, typer.Option(help="Only from this topic or NATS stream.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    offset: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List dead letters, newest first."""
    page = call(server, lambda client: client.dead_letters(topic=topic, limit=limit, offset=offset))
    if output is not Format.TABLE:
        letters = [views.dead_letter_data(letter) for letter in page.dead_letters]
        emit_data({"dead_letters": letters, "total_count": page.total_count}, output)
        return
    if page.dead_letters:
        console().print(views.dead_letters_view(page.dead_letters))
    shown = f"{len(page.dead_letters)} of {page.total_count}" if page.total_count else "no"
    say(f"{shown} dead letters", err=True)


OriginArgument = Annotated[str, typer.Argument(metavar="ORIGIN", help="TOPIC/PARTITION/OFFSET, as `list` shows it.")]


@deadletters.command("show", cls=PlainCommand)
def show(origin: OriginArgument, server: ServerOption = None, output: OutputOption = Format.TABLE) -> None:
    """Show one dead letter: the reason, its headers, its body, and when it was sent back."""
    where = parsed(origin)
    found = call(server, lambda client: client.dead_letter(*where))
    if output is Format.TABLE:
        console().print(views.dead_letter_view(found))
    else:
        emit_data(views.shown_data(found), output)


@deadletters.command("replay", cls=PlainCommand)
def replay(
    origins: Annotated[
        list[str] | None,
        typer.Argument(metavar="ORIGIN", help="TOPIC/PARTITION/OFFSET, as `list` shows it.", show_default=False),
    ] = None,
    actor: ActorOption = None,
    reason: ReasonOption = "",
    everything: Annotated[bool, typer.Option("--all", help="All that match. Asks first, unless --yes.")] = False,  # noqa: FBT002 - typer makes flags of them
    topic: Annotated[str | None, typer.Option(help="With --all: only from this topic or NATS stream.")] = None,
    code: Annotated[str | None, typer.Option(help="With --all: only with this code.")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,  # noqa: FBT002 - as above
    request_id: Annotated[
        str | None, typer.Option(help="The same id again sends nothing more.", show_default=False)
    ] = None,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Send the original messages back to their topics. One that fails again becomes a new dead letter."""
    if bool(origins) == everything:
        raise typer.BadParameter("name dead letters, or use --all, but not both", param_hint="ORIGIN")
    named = origins or _matching(server, topic, code)
    who: dict[str, Any] = {"actor": actor or login(), "reason": reason, "request_id": request_id}
    if len(named) == 1 and not everything:
        where = parsed(named[0])
        done = call(server, lambda client: client.replay_dead_letter(*where, **who))
        if output is Format.TABLE:
            say(("already " if done.repeated_request else "") + done.message)
        else:
            emit_data(views.replay_data(done.replay) | {"repeated_request": done.repeated_request}, output)
        return
    from ceremony.cli import bulk

    if everything:
        bulk.confirmed("replay", "dead letters", len(named), yes=yes)
    items = [bulk.BulkItem(name, _replaying(parsed(name), who)) for name in dict.fromkeys(named)]
    bulk.run(server, "replay", items, output)


def parsed(origin: str) -> tuple[str, int, int]:
    """Parse an origin into topic, partition and offset. Raises BadParameter."""
    match origin.rsplit("/", 2):
        case [topic, partition, offset] if topic and partition.isdecimal() and offset.isdecimal():
            return topic, int(partition), int(offset)
    raise typer.BadParameter(f"{origin!r} is not TOPIC/PARTITION/OFFSET", param_hint="ORIGIN")


def _replaying(where: tuple[str, int, int], who: Mapping[str, Any]) -> Callable[[AsyncPlanningCeremonyClient], Any]:
    return lambda client: client.replay_dead_letter(*where, **who)


def _matching(server: str | None, topic: str | None, code: str | None) -> list[str]:
    """Origins of all dead letters that match, oldest first, so that a replay keeps their order."""

    async def work(client: AsyncPlanningCeremonyClient) -> list[str]:
        found: list[pb.DeadLetter] = []
        while True:
            page = await client.dead_letters(topic=topic, limit=LARGEST_PAGE, offset=len(found))
            found += page.dead_letters
            if not page.dead_letters or len(found) >= page.total_count:
                break
        return [f"{one.origin}/{one.partition}/{one.offset}" for one in reversed(found) if code in (None, one.code)]

    return call(server, work)
