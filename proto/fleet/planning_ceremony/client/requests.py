"""Makes the requests of both clients; each operation gets a request id, so that it can be repeated safely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from fleet.planning_ceremony.client.inputs import add_inputs
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb


def new_request_id() -> str:
    return uuid4().hex


def start(
    definition_name: str,
    *,
    ceremony_id: str,
    story_id: str,
    requested_by: str,
    inputs: Mapping[str, Any] | None = None,
    step_ids: Iterable[str] = (),
    correlation_id: str | None = None,
) -> pb.StartPlanningCeremonyRequest:
    """Raises PlanningCeremonyError or an error of protobuf for arguments that cannot be sent."""
    request = pb.StartPlanningCeremonyRequest(
        ceremony_id=ceremony_id,
        definition_name=definition_name,
        story_id=story_id,
        correlation_id=correlation_id,
        step_ids=step_ids,
        requested_by=requested_by,
        request_id=new_request_id(),
    )
    add_inputs(request, inputs or {})
    return request


def listing(
    *,
    state: str | None,
    definition_name: str | None,
    story_id: str | None,
    status: str | None,
    inputs: Mapping[str, str] | None,
    created_from: str | None,
    created_before: str | None,
    correlation_id: str | None,
    gate_role: str | None,
    error_code: str | None,
    subject: str | None,
    limit: int,
    offset: int,
    page_token: str | None,
) -> pb.ListPlanningCeremonyInstancesRequest:
    return pb.ListPlanningCeremonyInstancesRequest(
        state_filter=state,
        definition_filter=definition_name,
        story_id=story_id,
        status_filter=status,
        input_filters=inputs,
        created_from=created_from,
        created_before=created_before,
        correlation_filter=correlation_id,
        gate_role_filter=gate_role,
        error_code_filter=error_code,
        subject_filter=subject,
        limit=limit,
        offset=offset,
        page_token=page_token,
    )


def decision(
    instance_id: str,
    *,
    approved: bool,
    actor: str,
    role: str,
    step_id: str | None,
    guard: str | None,
    visit: int | None,
    comment: str,
) -> pb.DecideGateRequest:
    """Raises ValueError unless exactly one of `step_id` and `guard` is given."""
    if (step_id is None) == (guard is None):
        raise ValueError("name the gate by step_id or by guard, exactly one of them")
    request = pb.DecideGateRequest(
        instance_id=instance_id,
        approved=approved,
        visit=visit,
        actor=actor,
        role=role,
        comment=comment,
        request_id=new_request_id(),
    )
    # A oneof keeps the field that is set last, even an empty string: set only the given one.
    if step_id is not None:
        request.step_id = step_id
    elif guard is not None:
        request.guard = guard
    return request


def history_page(instance_id: str, limit: int, page_token: str) -> pb.GetHistoryRequest:
    """A page of the whole history."""
    return pb.GetHistoryRequest(instance_id=instance_id, limit=limit, whole=True, page_token=page_token)


def replay(
    origin: str, partition: int, offset: int, *, actor: str, reason: str, request_id: str | None
) -> pb.ReplayDeadLetterRequest:
    return pb.ReplayDeadLetterRequest(
        origin=origin,
        partition=partition,
        offset=offset,
        actor=actor,
        reason=reason,
        request_id=request_id or new_request_id(),
    )
