"""The verb `get`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ceremony.cli import views
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import console
from ceremony.cli.errors import unknown
from ceremony.cli.options import InstanceArgument
from ceremony.cli.output import Format, OutputOption, emit_data

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb


def get(instance_id: InstanceArgument, server: ServerOption = None, output: OutputOption = Format.TABLE) -> None:
    """Show one ceremony: its state, its steps, and its waits."""

    async def work(client: AsyncPlanningCeremonyClient) -> pb.PlanningCeremonyInstance | None:
        return await client.get(instance_id)

    found = call(server, work)
    if found is None:
        raise unknown(instance_id)
    if output is Format.TABLE:
        console().print(views.ceremony_view(found))
    else:
        emit_data(views.ceremony_data(found), output)
