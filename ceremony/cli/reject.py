"""The verb `reject`."""

from __future__ import annotations

from ceremony.cli.connection import ServerOption
from ceremony.cli.gates import CommentOption, GateArgument, GateChoice, GateRoleOption, VisitOption, decide
from ceremony.cli.options import ActorOption, InstanceArgument, login
from ceremony.cli.output import Format, OutputOption


def reject(
    instance_id: InstanceArgument,
    gate: GateArgument = None,
    actor: ActorOption = None,
    role: GateRoleOption = None,
    comment: CommentOption = "",
    visit: VisitOption = None,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Reject a human gate. Its step fails; `on_failure` of the definition decides the rest."""
    choice = GateChoice(instance_id, actor or login(), comment, gate, role, visit, approved=False)
    decide(choice, server, output)
