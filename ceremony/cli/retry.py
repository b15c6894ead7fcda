"""The verb `retry`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ceremony.cli.connection import ServerOption, call
from ceremony.cli.errors import CommandFailed, unknown
from ceremony.cli.options import ActorOption, ReasonOption, login
from ceremony.cli.output import Format, OutputOption
from ceremony.cli.selection import (
    FAILED,
    RUNNING,
    WAITING,
    AllOption,
    DefinitionOption,
    Filters,
    IdArgument,
    RoleOption,
    StateOption,
    StatusOption,
    StoryOption,
    YesOption,
    matching,
    on_steps,
)
from ceremony.cli.views import report_change

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient

    from ceremony.cli.selection import Found, Operation


TIMED_OUT, CANCELLED = "TIMED_OUT", "CANCELLED"
THE_CANCELLED = "of the cancelled steps"


def retry(
    instance_id: IdArgument = None,
    step: Annotated[
        str | None,
        typer.Argument(metavar="STEP", help="The step. May be left out when only one has failed.", show_default=False),
    ] = None,
    only: Annotated[str | None, typer.Option("--step", help="With --all: this step. Default: the failed ones.")] = None,
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
    """Retry a failed step with a new budget. A FAILED or TIMED_OUT ceremony opens again.

    With --all, ceremonies that have TIMED_OUT open again only where --status names them: --all --status TIMED_OUT.
    """
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient

    filters = Filters(everything, state, definition, status, story, yes)
    filters.check([instance_id] if instance_id else [])
    who = {"actor": actor or login(), "role": role, "reason": reason}
    operation: Operation = AsyncPlanningCeremonyClient.retry_step
    if instance_id:
        name = step or only or call(server, lambda client: _the_failed(client, instance_id))
        report_change(
            f"retry {name or THE_CANCELLED}",
            call(server, lambda client: operation(client, instance_id, name, **who)),
            output,
        )
        return
    found = matching(server, filters, frozenset({FAILED, RUNNING, WAITING}))
    pairs = [(one.instance_id, name) for one in found for name in steps_to_retry(one, only)]
    on_steps("retry", operation, pairs, filters, who, server, output, nameless=THE_CANCELLED)


def steps_to_retry(found: Found, only: str | None) -> list[str]:
    """Names of the steps that `--all` retries in a ceremony: the failed ones, of a time-out also the cancelled ones.

    An empty name stands for every step that the time-out cancelled.
    """
    failed = failed_steps(found)
    if found.status != TIMED_OUT:
        return [name for name in failed if only in (None, name)]
    if only is not None:
        return [only] if found.step_status.get(only) in (FAILED, CANCELLED) else []
    return failed or [""]


def failed_steps(found: Found) -> list[str]:
    """Ids of the failed steps, sorted."""
    return sorted(step_id for step_id, word in found.step_status.items() if word == FAILED)


async def _the_failed(client: AsyncPlanningCeremonyClient, instance_id: str) -> str:
    """The only failed step of a ceremony; empty after a time-out without one, for every step that it cancelled.

    Raises CommandFailed when there is none, or several.
    """
    found = await client.get(instance_id)
    if found is None:
        raise unknown(instance_id)
    names = failed_steps(found)
    if len(names) == 1:
        return names[0]
    if names:
        raise CommandFailed("step_ambiguous", f"{instance_id} has several failed steps: {', '.join(names)}")
    if found.status == TIMED_OUT:
        return ""
    raise CommandFailed("step_not_failed", f"{instance_id} has no failed step; it is {found.status}")
