"""The verb `list`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ceremony.cli import views
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import console
from ceremony.cli.options import Status, named_values
from ceremony.cli.output import Format, OutputOption, emit_data, say
from ceremony.cli.times import moment

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

    Page = pb.ListPlanningCeremonyInstancesResponse

# The engine returns no more ceremonies or dead letters at once.
LARGEST_PAGE = 1000


def list_(
    state: Annotated[str | None, typer.Option(help="Only in this state of their definition.")] = None,
    definition: Annotated[str | None, typer.Option(help="Only of this definition.")] = None,
    story: Annotated[str | None, typer.Option(help="Only about this story.")] = None,
    status: Annotated[Status | None, typer.Option(case_sensitive=False, help="Only with this status.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=VALUE", help="Only with this value of a searchable input; repeatable."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only created since then: a time (2026-01-31T12:00:00Z), or an age (90m, 12h, 3d)."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only created before then; a time or an age.")] = None,
    correlation: Annotated[str | None, typer.Option(help="Only with this correlation id.")] = None,
    gate_role: Annotated[str | None, typer.Option(help="Only with a gate or human guard open for this role.")] = None,
    error_code: Annotated[str | None, typer.Option(help="Only with this error code, of the whole or a step.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only with a publish step for this subject, attempted.")] = None,
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
        "inputs": named_values(given or []),
        "created_from": None if since is None else moment("since", since).isoformat(),
        "created_before": None if until is None else moment("until", until).isoformat(),
        "correlation_id": correlation,
        "gate_role": gate_role,
        "error_code": error_code,
        "subject": subject,
    }

    async def work(client: AsyncPlanningCeremonyClient) -> tuple[Sequence[pb.PlanningCeremonyInstance], Page]:
        return await pages(client, filters, limit, offset)

    found, last = call(server, work)
    if last.message:
        say(last.message, err=True)
    if output is Format.TABLE:
        _print_list(found, last, offset)
    else:
        data = {"ceremonies": [views.ceremony_data(one) for one in found], "total_count": last.total_count}
        emit_data({**data, "total_is_lower_bound": last.total_is_lower_bound}, output)


def _print_list(found: Sequence[pb.PlanningCeremonyInstance], last: Page, offset: int) -> None:
    if found:
        console().print(views.list_view(found))
    if len(found) < last.total_count or last.next_page_token:
        shown = f"{offset + 1} to {offset + len(found)}" if found else "none"
        least = "at least " if last.total_is_lower_bound else ""
        say(f"{shown} of {least}{last.total_count}; use --limit and --offset for more", err=True)
    elif not found:
        say("no ceremonies", err=True)


async def pages(
    client: AsyncPlanningCeremonyClient, filters: Mapping[str, Any], limit: int, offset: int
) -> tuple[list[pb.PlanningCeremonyInstance], Page]:
    """Fetch pages until `limit` or the end; a page of large ceremonies holds fewer. Return them and the last page."""
    found: list[pb.PlanningCeremonyInstance] = []
    token = ""
    while True:
        left = min(limit - len(found), LARGEST_PAGE)
        if token:
            page = await client.list(**filters, limit=left, page_token=token)
        else:  # the first page, or one of a worker of release 0.1.0, which has no tokens
            page = await client.list(**filters, limit=left, offset=min(offset + len(found), 2**31 - 1))
        found += page.ceremonies
        token = page.next_page_token
        ended = not token and (not page.ceremonies or offset + len(found) >= page.total_count)
        if ended or len(found) >= limit:
            return found, page
