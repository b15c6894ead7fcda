"""The verb `approve`."""

from __future__ import annotations

from ceremony.cli.connection import ServerOption
from ceremony.cli.gates import CommentOption, GateArgument, GateChoice, GateRoleOption, VisitOption, decide
from ceremony.cli.options import ActorOption, InstanceArgument, login
from ceremony.cli.output import Format, OutputOption


def approve(
    instance_id: InstanceArgument,
    gate: GateArgument = None,
    actor: ActorOption = None,
    role: GateRoleOption = None,
    comment: CommentOption = "",
    visit: VisitOption = None,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Approve a human gate or a human guard."""
    choice = GateChoice(instance_id, actor or login(), comment, gate, role, visit, approved=True)
    decide(choice, server, output)
