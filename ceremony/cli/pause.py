"""The verb `pause`."""

from __future__ import annotations

from ceremony.cli.connection import ServerOption
from ceremony.cli.options import ActorOption, ReasonOption, login
from ceremony.cli.output import Format, OutputOption
from ceremony.cli.selection import (
    RUNNING,
    WAITING,
    AllOption,
    DefinitionOption,
    Filters,
    IdsArgument,
    RoleOption,
    StateOption,
    StatusOption,
    StoryOption,
    YesOption,
    on_ceremonies,
)


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
    """Pause ceremonies. Answers are recorded, nothing new starts, timers stop."""
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient

    filters = Filters(everything, state, definition, status, story, yes)
    who = {"actor": actor or login(), "role": role, "reason": reason}
    on = frozenset({RUNNING, WAITING})
    on_ceremonies("pause", AsyncPlanningCeremonyClient.pause, ids or [], filters, on, who, server, output)
