"""The verb `run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ceremony.cli.connection import ServerOption, call
from ceremony.cli.options import ActorOption, ReasonOption, login
from ceremony.cli.output import Format, OutputOption
from ceremony.cli.selection import (
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
    from ceremony.cli.selection import Operation


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
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient

    filters = Filters(everything, state, definition, status, story, yes)
    filters.check([instance_id] if instance_id else [])
    name = step or only
    if name is None:
        raise typer.BadParameter("name the step", param_hint="STEP")
    who = {"actor": actor or login(), "role": role, "reason": reason}
    operation: Operation = AsyncPlanningCeremonyClient.run_step
    if instance_id:
        report_change(f"run {name}", call(server, lambda client: operation(client, instance_id, name, **who)), output)
        return
    found = matching(server, filters, frozenset({RUNNING, WAITING}))
    pairs = [(one.instance_id, name) for one in found if one.step_status.get(name) == "PENDING"]
    on_steps("run", operation, pairs, filters, who, server, output)
