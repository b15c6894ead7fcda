"""The verb `list`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ceremony.cli import views
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import console
from ceremony.cli.options import Status
from ceremony.cli.output import Format, OutputOption, emit_data, say

if TYPE_CHECKING:
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
    from fleet.planning_ceremony.v1.client import PlanningCeremonyClient

# The engine returns no more ceremonies or dead letters at once.
LARGEST_PAGE = 1000


def list_(
    state: Annotated[str | None, typer.Option(help="Only in this state of their definition.")] = None,
    definition: Annotated[str | None, typer.Option(help="Only of this definition.")] = None,
    story: Annotated[str | None, typer.Option(help="Only about this story.")] = None,
    status: Annotated[Status | None, typer.Option(case_sensitive=False, help="Only with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of ceremonies, at most.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Number of the newest ceremonies to leave out.")] = 0,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List ceremonies, newest first."""
    filters = {
        "state": state,
        "definition_name": definition,
        "story_id": story,
        "status": status,
    }

    async def work(client: PlanningCeremonyClient) -> tuple[Sequence[pb.PlanningCeremonyInstance], int]:
        return await pages(client, filters, limit, offset)

    found, total = call(server, work)
    if output is Format.TABLE:
        _print_list(found, total, offset)
    else:
        emit_data({"ceremonies": [views.ceremony_data(one) for one in found], "total_count": total}, output)


def _print_list(found: Sequence[pb.PlanningCeremonyInstance], total: int, offset: int) -> None:
    if found:
        console().print(views.list_view(found))
    if len(found) < total:
        shown = f"{offset + 1} to {offset + len(found)}" if found else "none"
        say(f"{shown} of {total}; use --limit and --offset for more", err=True)
    elif not found:
        say("no ceremonies", err=True)


async def pages(
    client: PlanningCeremonyClient, filters: Mapping[str, Any], limit: int, offset: int
) -> tuple[list[pb.PlanningCeremonyInstance], int]:
    """Fetch pages until `limit` or the end; a page of large ceremonies holds fewer. Return them and the total."""
    found: list[pb.PlanningCeremonyInstance] = []
    while True:
        page = await client.list(
            **filters, limit=min(limit - len(found), LARGEST_PAGE), offset=min(offset + len(found), 2**31 - 1)
        )
        found += page.ceremonies
        if not page.ceremonies or len(found) >= limit or offset + len(found) >= page.total_count:
            return found, page.total_count
