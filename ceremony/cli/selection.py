"""The verbs by which an operator stops and moves ceremonies: `cancel`, `pause`, `resume`, `retry`, `run`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.client import PlanningCeremonyClient

from ceremony.cli import bulk
from ceremony.cli.ceremonies import login, pages, unknown
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.decisions import ActorOption, ReasonOption, show
from ceremony.cli.errors import CommandFailed
from ceremony.cli.output import Format, OutputOption

RUNNING, WAITING, PAUSED, FAILED = "RUNNING", "WAITING_FOR_HUMAN", "PAUSED", "FAILED"
LIVE = frozenset({RUNNING, WAITING, PAUSED})

IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Instance ids, CEREMONY:STORY; or --all with filters.", show_default=False),
]
IdArgument = Annotated[
    str | None, typer.Argument(metavar="ID", help="Instance id, CEREMONY:STORY.", show_default=False)
]
RoleOption = Annotated[str, typer.Option(help="In which role; wanted where the definition's roles name the action.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that match the filters; asks before, unless --yes.")]
StateOption = Annotated[str | None, typer.Option(help="With --all: only in this state of their definition.")]
DefinitionOption = Annotated[str | None, typer.Option(help="With --all: only of this definition.")]
StatusOption = Annotated[
    str | None, typer.Option(help="With --all: only with this status. Default: those on which it makes sense.")
]
StoryOption = Annotated[str | None, typer.Option(help="With --all: only about this story.")]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]

Found = pb.PlanningCeremonyInstance
Operation = Callable[..., Coroutine[Any, Any, Found]]
"""A method of the client, without its self: (client, id[, step], actor, role, reason)."""
Work = Callable[[PlanningCeremonyClient], Coroutine[Any, Any, Found]]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which ceremonies `--all` means."""

    everything: bool
    state: str | None
    definition: str | None
    status: str | None
    story: str | None
    yes: bool

    def check(self, named: Sequence[str]) -> None:
        """Raises BadParameter unless ceremonies are named, or meant by --all, and not both."""
        filtered = any((self.state, self.definition, self.status, self.story))
        if named and (self.everything or filtered):
            raise typer.BadParameter("name ceremonies, or say --all with filters, not both", param_hint="--all")
        if not named and not self.everything:
            hint = "filters need --all" if filtered else "name a ceremony, or say --all"
            raise typer.BadParameter(hint, param_hint="ID")


def cancel(
    ids: IdsArgument = None,
    actor: ActorOption = None,
    role: RoleOption = "",
    reason: ReasonOption = "",
    everything: AllOption = False,  # noqa: FBT002 - typer makes flags of them
    state: StateOption = None,
    definition: DefinitionOption = None,
    status: StatusOption = None,
    story: StoryOption = None,
    yes: YesOption = False,  # noqa: FBT002 - as above
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Cancel ceremonies: each ends as CANCELLED, its steps in flight first."""
    filters = Filters(everything, state, definition, status, story, yes)
    who = {"actor": actor or login(), "role": role, "reason": reason}
    _whole("cancel", PlanningCeremonyClient.cancel, ids or [], filters, LIVE, who, server, output)


def pause(
    ids: IdsArgument = None,
    actor: ActorOption = None,
    role: RoleOption = "",
    reason: ReasonOption = "",
    everything: AllOption = False,  # noqa: FBT002 - typer makes flags of them
    state: StateOption = None,
    definition: DefinitionOption = None,
    status: StatusOption = None,
    story: StoryOption = None,
    yes: YesOption = False,  # noqa: FBT002 - as above
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Pause ceremonies: answers are recorded, nothing starts, timers of steps and gates stop."""
    filters = Filters(everything, state, definition, status, story, yes)
    who = {"actor": actor or login(), "role": role, "reason": reason}
    on = frozenset({RUNNING, WAITING})
    _whole("pause", PlanningCeremonyClient.pause, ids or [], filters, on, who, server, output)


def resume(
    ids: IdsArgument = None,
    actor: ActorOption = None,
    role: RoleOption = "",
    reason: ReasonOption = "",
    everything: AllOption = False,  # noqa: FBT002 - typer makes flags of them
    state: StateOption = None,
    definition: DefinitionOption = None,
    status: StatusOption = None,
    story: StoryOption = None,
    yes: YesOption = False,  # noqa: FBT002 - as above
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Let paused ceremonies go on; their timers go on with their rest."""
    filters = Filters(everything, state, definition, status, story, yes)
    who = {"actor": actor or login(), "role": role, "reason": reason}
    on = frozenset({PAUSED})
    _whole("resume", PlanningCeremonyClient.resume, ids or [], filters, on, who, server, output)


def retry(
    instance_id: IdArgument = None,
    step: Annotated[
        str | None,
        typer.Argument(metavar="STEP", help="The step; may be left out where only one has failed.", show_default=False),
    ] = None,
    only: Annotated[str | None, typer.Option("--step", help="With --all: this step. Default: what has failed.")] = None,
    actor: ActorOption = None,
    role: RoleOption = "",
    reason: ReasonOption = "",
    everything: AllOption = False,  # noqa: FBT002 - typer makes flags of them
    state: StateOption = None,
    definition: DefinitionOption = None,
    status: StatusOption = None,
    story: StoryOption = None,
    yes: YesOption = False,  # noqa: FBT002 - as above
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Retry a failed step with a new budget of attempts; a FAILED ceremony is open again."""
    filters = Filters(everything, state, definition, status, story, yes)
    filters.check([instance_id] if instance_id else [])
    who = {"actor": actor or login(), "role": role, "reason": reason}
    operation: Operation = PlanningCeremonyClient.retry_step
    if instance_id:
        name = step or only or call(server, lambda client: _the_failed(client, instance_id))
        show(f"retry {name}", call(server, lambda client: operation(client, instance_id, name, **who)), output)
        return
    found = _matching(server, filters, frozenset({FAILED, RUNNING, WAITING}))
    pairs = [(one.instance_id, name) for one in found for name in failed_steps(one) if only in (None, name)]
    _steps("retry", operation, pairs, filters, who, server, output)


def run(
    instance_id: IdArgument = None,
    step: Annotated[
        str | None,
        typer.Argument(metavar="STEP", help="A step that the start left out.", show_default=False),
    ] = None,
    only: Annotated[str | None, typer.Option("--step", help="With --all: this step.")] = None,
    actor: ActorOption = None,
    role: RoleOption = "",
    reason: ReasonOption = "",
    everything: AllOption = False,  # noqa: FBT002 - typer makes flags of them
    state: StateOption = None,
    definition: DefinitionOption = None,
    status: StatusOption = None,
    story: StoryOption = None,
    yes: YesOption = False,  # noqa: FBT002 - as above
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Run a step that the start did not select."""
    filters = Filters(everything, state, definition, status, story, yes)
    filters.check([instance_id] if instance_id else [])
    name = step or only
    if name is None:
        raise typer.BadParameter("name the step", param_hint="STEP")
    who = {"actor": actor or login(), "role": role, "reason": reason}
    operation: Operation = PlanningCeremonyClient.run_step
    if instance_id:
        show(f"run {name}", call(server, lambda client: operation(client, instance_id, name, **who)), output)
        return
    found = _matching(server, filters, frozenset({RUNNING, WAITING}))
    pairs = [(one.instance_id, name) for one in found if one.step_status.get(name) == "PENDING"]
    _steps("run", operation, pairs, filters, who, server, output)


# -- beneath


def failed_steps(found: Found) -> list[str]:
    """Ids of the steps that have failed, in order of name."""
    return sorted(step_id for step_id, word in found.step_status.items() if word == FAILED)


async def _the_failed(client: PlanningCeremonyClient, instance_id: str) -> str:
    """The one step that has failed."""
    found = await client.get(instance_id)
    if found is None:
        raise unknown(instance_id)
    names = failed_steps(found)
    if len(names) == 1:
        return names[0]
    if names:
        raise CommandFailed("step_ambiguous", f"{instance_id} has several failed steps: {', '.join(names)}")
    raise CommandFailed("step_not_failed", f"{instance_id} has no failed step; it is {found.status}")


def _whole(
    verb: str,
    operation: Operation,
    named: Sequence[str],
    filters: Filters,
    on: frozenset[str],
    who: dict[str, str],
    server: str | None,
    output: Format,
) -> None:
    """An operation on whole ceremonies: one is answered like other verbs, many by a summary."""
    filters.check(named)
    if len(named) == 1:
        show(verb, call(server, lambda client: operation(client, named[0], **who)), output)
        return
    ids = list(dict.fromkeys(named)) or [one.instance_id for one in _matching(server, filters, on)]
    if not named:
        bulk.confirmed(verb, "ceremonies", len(ids), yes=filters.yes)
    bulk.run(server, verb, [bulk.BulkItem(name, _on(operation, name, **who)) for name in ids], output)


def _steps(
    verb: str,
    operation: Operation,
    pairs: Sequence[tuple[str, str]],
    filters: Filters,
    who: dict[str, str],
    server: str | None,
    output: Format,
) -> None:
    bulk.confirmed(verb, "steps", len(pairs), yes=filters.yes)
    items = [bulk.BulkItem(f"{name} {step}", _on(operation, name, step, **who)) for name, step in pairs]
    bulk.run(server, verb, items, output)


def _on(operation: Operation, *names: str, **who: str) -> Work:
    return lambda client: operation(client, *names, **who)


def _matching(server: str | None, filters: Filters, on: frozenset[str]) -> list[Found]:
    """All ceremonies that the filters mean; without a status, those `on` which the verb makes sense."""
    wanted = {"state": filters.state, "definition_name": filters.definition, "story_id": filters.story}
    statuses = [filters.status.upper()] if filters.status else sorted(on)

    async def work(client: PlanningCeremonyClient) -> list[Found]:
        found: dict[str, Found] = {}
        for status in statuses:
            page, _ = await pages(client, {**wanted, "status": status}, sys.maxsize, 0)
            found |= {one.instance_id: one for one in page}
        return list(found.values())

    return call(server, work)
