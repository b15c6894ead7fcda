"""Decisions on gates, for the verbs `approve` and `reject`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ceremony.cli.connection import call
from ceremony.cli.errors import CommandFailed, unknown
from ceremony.cli.output import Format
from ceremony.cli.views import report_change

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

GateArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="GATE", help="Gate step or human guard; optional when only one is open.", show_default=False
    ),
]
GateRoleOption = Annotated[
    str | None, typer.Option(help="Role of the actor; default: the role that the gate asks for.")
]
CommentOption = Annotated[str, typer.Option("-m", "--comment", help="Kept with the decision.")]
VisitOption = Annotated[
    int | None,
    typer.Option(min=1, help="Number of the visit to decide; default: the one that is open now.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class GateChoice:
    """A decision as typed: gate, role and visit may be left out."""

    instance_id: str
    actor: str
    comment: str
    gate: str | None
    role: str | None
    visit: int | None
    approved: bool


def decide(decision: GateChoice, server: str | None, output: Format) -> None:
    async def work(client: AsyncPlanningCeremonyClient) -> tuple[str, pb.PlanningCeremonyInstance]:
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
    report_change(f"{'approved' if decision.approved else 'rejected'} {name}", after, output)


async def open_gate(client: AsyncPlanningCeremonyClient, decision: GateChoice) -> pb.OpenGate:
    """Look up the gate, so that the decision applies to the visit that is open now and to no later one.

    A named gate that is not open is passed on: the engine gives the best reason why it cannot be decided.
    """
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

    found = await client.get(decision.instance_id)
    if found is None:
        raise unknown(decision.instance_id)
    if decision.gate is not None:
        return named_gate(found.open_gates, decision.gate, decision.role) or pb.OpenGate(step_id=decision.gate)
    if len(found.open_gates) == 1:
        return found.open_gates[0]
    if found.open_gates:
        names = ", ".join(gate.step_id or gate.guard for gate in found.open_gates)
        raise CommandFailed("gate_ambiguous", f"{found.instance_id} has several open gates: {names}")
    waits = "; ".join(found.waiting_for) or f"it is {found.status}"
    raise CommandFailed("gate_not_open", f"{found.instance_id} has no open gate: {waits}")


def named_gate(gates: Iterable[pb.OpenGate], name: str, role: str | None) -> pb.OpenGate | None:
    """Return the open gate of this name, or None.

    In a ceremony of an old definition a gate step and a human guard may share it: then the one of this role is meant,
    else the step, which is listed first.
    """
    named = [gate for gate in gates if name in (gate.step_id, gate.guard)]
    return next((gate for gate in named if gate.role == role), named[0] if named else None)
