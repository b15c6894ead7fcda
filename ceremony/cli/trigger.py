"""The verb `trigger`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ceremony.cli.connection import ServerOption, call
from ceremony.cli.options import ActorOption, InstanceArgument, ReasonOption, login
from ceremony.cli.output import Format, OutputOption
from ceremony.cli.views import report_change

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb


def trigger(
    instance_id: InstanceArgument,
    name: Annotated[str, typer.Argument(metavar="TRIGGER", help="Trigger of a transition out of the present state.")],
    actor: ActorOption = None,
    role: Annotated[str, typer.Option(help="Role of the actor; it must be allowed to.")] = "",
    reason: ReasonOption = "",
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Ask for a transition out of the present state, by its trigger."""

    async def work(client: AsyncPlanningCeremonyClient) -> pb.PlanningCeremonyInstance:
        return await client.trigger(instance_id, name, actor=actor or login(), role=role, reason=reason)

    report_change(name, call(server, work), output)
