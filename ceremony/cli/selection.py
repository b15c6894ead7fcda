"""Selection of ceremonies for the verbs that act on one, on several, or with `--all` on all that match filters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ceremony.cli.connection import call
from ceremony.cli.list import pages
from ceremony.cli.options import Status
from ceremony.cli.output import Format
from ceremony.cli.views import report_change

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

    Found = pb.PlanningCeremonyInstance
    # An unbound method of the client: (client, id[, step], actor, role, reason).
    Operation = Callable[..., Coroutine[Any, Any, Found]]
    Work = Callable[[AsyncPlanningCeremonyClient], Coroutine[Any, Any, Found]]

RUNNING, WAITING, PAUSED, FAILED = "RUNNING", "WAITING_FOR_HUMAN", "PAUSED", "FAILED"

IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Instance ids, CEREMONY:STORY; or --all with filters.", show_default=False),
]
IdArgument = Annotated[
    str | None, typer.Argument(metavar="ID", help="Instance id, CEREMONY:STORY.", show_default=False)
]
RoleOption = Annotated[str, typer.Option(help="Role of the actor; required if the definition restricts the action.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that match the filters. Asks first, unless --yes.")]
StateOption = Annotated[str | None, typer.Option(help="With --all: only in this state of their definition.")]
DefinitionOption = Annotated[str | None, typer.Option(help="With --all: only of this definition.")]
StatusOption = Annotated[
    Status | None,
    typer.Option(
        case_sensitive=False,
        help="With --all: only with this status. Default: each status to which the verb applies.",
    ),
]
StoryOption = Annotated[str | None, typer.Option(help="With --all: only about this story.")]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters that go with `--all`."""

    everything: bool
    state: str | None
    definition: str | None
    status: Status | None
    story: str | None
    yes: bool

    def check(self, named: Sequence[str]) -> None:
        """Raises BadParameter unless either ceremonies are named or --all is given."""
        filtered = any((self.state, self.definition, self.status, self.story))
        if named and (self.everything or filtered):
            raise typer.BadParameter("name ceremonies, or use --all with filters, but not both", param_hint="--all")
        if not named and not self.everything:
            hint = "filters need --all" if filtered else "name a ceremony, or use --all"
            raise typer.BadParameter(hint, param_hint="ID")


def on_ceremonies(
    verb: str,
    operation: Operation,
    named: Sequence[str],
    filters: Filters,
    on: frozenset[str],
    who: dict[str, str],
    server: str | None,
    output: Format,
) -> None:
    """Run an operation on ceremonies. One is answered as by other verbs, several with a summary."""
    from ceremony.cli import bulk

    filters.check(named)
    if len(named) == 1:
        report_change(verb, call(server, lambda client: operation(client, named[0], **who)), output)
        return
    ids = list(dict.fromkeys(named)) or [one.instance_id for one in matching(server, filters, on)]
    if not named:
        bulk.confirmed(verb, "ceremonies", len(ids), yes=filters.yes)
    bulk.run(server, verb, [bulk.BulkItem(name, _on(operation, name, **who)) for name in ids], output)


def on_steps(
    verb: str,
    operation: Operation,
    pairs: Sequence[tuple[str, str]],
    filters: Filters,
    who: dict[str, str],
    server: str | None,
    output: Format,
    *,
    nameless: str = "",
) -> None:
    """Run an operation on steps, pairs of instance and step. `nameless` is shown for a pair without a step."""
    from ceremony.cli import bulk

    ceremonies = len({name for name, _ in pairs})
    bulk.confirmed(verb, f"steps of {ceremonies} ceremonies", len(pairs), yes=filters.yes)
    items = [bulk.BulkItem(f"{name} {step or nameless}", _on(operation, name, step, **who)) for name, step in pairs]
    bulk.run(server, verb, items, output)


def _on(operation: Operation, *names: str, **who: str) -> Work:
    return lambda client: operation(client, *names, **who)


def matching(server: str | None, filters: Filters, on: frozenset[str]) -> list[Found]:
    """All ceremonies that match. Without a status filter: those with a status of `on`, to which the verb applies."""
    wanted = {"state": filters.state, "definition_name": filters.definition, "story_id": filters.story}
    statuses = [filters.status] if filters.status else sorted(on)

    async def work(client: AsyncPlanningCeremonyClient) -> list[Found]:
        found: dict[str, Found] = {}
        for status in statuses:
            page, _ = await pages(client, {**wanted, "status": status}, sys.maxsize, 0)
            found |= {one.instance_id: one for one in page}
        return list(found.values())

    return call(server, work)
