"""The verbs by which people move a ceremony: `approve`, `reject`, `trigger`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.client import PlanningCeremonyClient

from ceremony.cli import views
from ceremony.cli.ceremonies import InstanceArgument, login, unknown
from ceremony.cli.connection import ServerOption, call
from ceremony.cli.errors import CommandFailed
from ceremony.cli.output import Format, OutputOption, emit_data, say

GateArgument = Annotated[
    str | None,
    typer.Argument(help="The gate step or human guard; may be left out where only one is open.", show_default=False),
]
ActorOption = Annotated[
    str | None,
    typer.Option(envvar="CEREMONY_ACTOR", help="Who acts; default: your login name.", show_default=False),
]
RoleOption = Annotated[str | None, typer.Option(help="In which role; default: the role that the gate asks for.")]
ReasonOption = Annotated[str, typer.Option("-m", "--reason", help="Why; kept with the ceremony's events.")]
CommentOption = Annotated[str, typer.Option("-m", "--comment", help="Kept with the decision.")]
VisitOption = Annotated[
    int | None,
    typer.Option(min=1, help="The visit you have seen; default: the one that is open now.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class GateChoice:
    """What a person says; the gate and the rest may still be open."""

    instance_id: str
    actor: str
    comment: str
    gate: str | None
    role: str | None
    visit: int | None
    approved: bool


def approve(
    instance_id: InstanceArgument,
    gate: GateArgument = None,
    actor: ActorOption = None,
    role: RoleOption = None,
    comment: CommentOption = "",
    visit: VisitOption = None,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Approve a human gate or a human guard."""
    word = GateChoice(instance_id, actor or login(), comment, gate, role, visit, approved=True)
    _decide(word, server, output)


def reject(
    instance_id: InstanceArgument,
    gate: GateArgument = None,
    actor: ActorOption = None,
    role: RoleOption = None,
    comment: CommentOption = "",
    visit: VisitOption = None,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Reject a human gate: its step fails, and `on_failure` of the definition says what follows."""
    word = GateChoice(instance_id, actor or login(), comment, gate, role, visit, approved=False)
    _decide(word, server, output)


def trigger(
    instance_id: InstanceArgument,
    name: Annotated[str, typer.Argument(metavar="TRIGGER", help="Of a transition that leaves the present state.")],
    actor: ActorOption = None,
    role: Annotated[str, typer.Option(help="In which role; it must be allowed to.")] = "",
    reason: ReasonOption = "",
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Ask for a transition by its trigger."""

    async def work(client: PlanningCeremonyClient) -> pb.PlanningCeremonyInstance:
        return await client.trigger(instance_id, name, actor=actor or login(), role=role, reason=reason)

    show(name, call(server, work), output)


def _decide(decision: GateChoice, server: str | None, output: Format) -> None:
    async def work(client: PlanningCeremonyClient) -> tuple[str, pb.PlanningCeremonyInstance]:
        gate = await open_gate(client, decision)
        after = await client.decide(
            decision.instance_id,
            approved=decision.approved,
            actor=decision.actor,
            role=gate.role if decision.role is None else decision.role,
            step_id=gate.step_id or None,
            guard=gate.guard or None,
            visit=decision.visit or gate.visit or None,
            comment=decision.comment,
        )
        return gate.step_id or gate.guard, after

    name, after = call(server, work)
    show(f"{'approved' if decision.approved else 'rejected'} {name}", after, output)


async def open_gate(client: PlanningCeremonyClient, decision: GateChoice) -> pb.OpenGate:
    """The gate that is meant. It is looked up, so that the decision is about the visit that is open now, and no later.

    A gate that is named and not open is left to the engine, which says best why it cannot be decided.
    """
    found = await client.get(decision.instance_id)
    if found is None:
        raise unknown(decision.instance_id)
    gates = {gate.step_id or gate.guard: gate for gate in found.open_gates}
    if decision.gate is not None:
        return gates.get(decision.gate) or pb.OpenGate(step_id=decision.gate)
    if len(gates) == 1:
        return next(iter(gates.values()))
    if gates:
        raise CommandFailed("gate_ambiguous", f"{found.instance_id} has several open gates: {', '.join(gates)}")
    waits = "; ".join(found.waiting_for) or f"it is {found.status}"
    raise CommandFailed("gate_not_open", f"{found.instance_id} has no open gate: {waits}")


def show(done: str, after: pb.PlanningCeremonyInstance, output: Format) -> None:
    """What became of the ceremony."""
    if output is Format.TABLE:
        say(f"{done}: {after.instance_id} is {after.status} in {after.current_state}")
    else:
        emit_data(views.ceremony_data(after), output)
