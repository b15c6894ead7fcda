"""A thin client of the ceremony engine: `async with PlanningCeremonyClient("localhost:50057") as ceremonies: ...`.

Every operation carries a request id, so it can be repeated safely. gRPC itself repeats it with the same id while the
engine is UNAVAILABLE (a worker starts, a partition moves). When the engine is overloaded (RESOURCE_EXHAUSTED), the
client repeats a start about when the engine's hint says, until the timeout.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import grpc
import grpc.aio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

Request = TypeVar("Request")
Response = TypeVar("Response")

TIMEOUT_SECONDS = 15.0
# Above it a double stands for several whole numbers.
LARGEST_EXACT = 2**53
# Trailing metadata: milliseconds until the call may be repeated.
RETRY_KEY = "retry-after-ms"
SERVICE = "fleet.planning_ceremony.v1.PlanningCeremonyProcessor"

RETRY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": SERVICE}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 2.5,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
CHANNEL_OPTIONS = (
    ("grpc.service_config", RETRY),
    ("grpc.enable_retries", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class PlanningCeremonyError(Exception):
    """The engine refused the call, or could not be reached in time."""

    def __init__(self, status: grpc.StatusCode, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status.name}: {message}")
        self.retry_after = retry_after
        """Seconds until the call may be repeated; None without a hint from the engine."""
        self.status = status
        """NOT_FOUND, ALREADY_EXISTS, INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION, UNAVAILABLE, …"""
        self.message = message
        """Problem, place and remedy; begins with a stable code."""


class PlanningCeremonyClient:
    """Calls the engine at `address` (`host:port`); methods raise PlanningCeremonyError.

    Create it in the event loop; `close` it, or use `async with`.
    """

    def __init__(self, address: str, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = PlanningCeremonyProcessorStub(self._channel)
        self._timeout = timeout

    async def start(
        self,
        definition_name: str,
        *,
        ceremony_id: str,
        story_id: str,
        requested_by: str,
        inputs: Mapping[str, Any] | None = None,
        step_ids: Iterable[str] = (),
        correlation_id: str | None = None,
    ) -> str:
        """Start a ceremony and return its instance id. Inputs other than strings are sent as JSON values.

        A whole number beyond 2^53 stays exact inside a list or an object; alone it must be given as text.
        """
        response = await self.start_response(
            definition_name,
            ceremony_id=ceremony_id,
            story_id=story_id,
            requested_by=requested_by,
            inputs=inputs,
            step_ids=step_ids,
            correlation_id=correlation_id,
        )
        return response.instance_id

    async def start_response(
        self,
        definition_name: str,
        *,
        ceremony_id: str,
        story_id: str,
        requested_by: str,
        inputs: Mapping[str, Any] | None = None,
        step_ids: Iterable[str] = (),
        correlation_id: str | None = None,
    ) -> pb.StartPlanningCeremonyResponse:
        """Start a ceremony as `start` does; the message says so when this start came again and it has ended."""
        given = {name: _exact(name, value) for name, value in (inputs or {}).items()}
        request = pb.StartPlanningCeremonyRequest(
            ceremony_id=ceremony_id,
            definition_name=definition_name,
            story_id=story_id,
            correlation_id=correlation_id,
            inputs={name: value for name, value in given.items() if isinstance(value, str)},
            step_ids=step_ids,
            requested_by=requested_by,
            request_id=_request_id(),
        )
        richer = {name: value for name, value in given.items() if not isinstance(value, str)}
        if richer:
            request.inputs_json.update(richer)
        return await self._call(self._stub.StartPlanningCeremony, request)

    async def get(self, instance_id: str) -> pb.PlanningCeremonyInstance | None:
        """The present ceremony, or None if it does not exist."""
        request = pb.GetPlanningCeremonyInstanceRequest(instance_id=instance_id)
        response = await self._call(self._stub.GetPlanningCeremonyInstance, request)
        return response.ceremony if response.success else None

    async def list(
        self,
        *,
        state: str | None = None,
        definition_name: str | None = None,
        story_id: str | None = None,
        status: str | None = None,
        inputs: Mapping[str, str] | None = None,
        created_from: str | None = None,
        created_before: str | None = None,
        correlation_id: str | None = None,
        gate_role: str | None = None,
        error_code: str | None = None,
        subject: str | None = None,
        limit: int = 100,
        offset: int = 0,
        page_token: str | None = None,
    ) -> pb.ListPlanningCeremonyInstancesResponse:
        """A page, newest first: `ceremonies`, the `total_count` of all matches, and the `next_page_token`.

        `inputs` are values of searchable inputs by name, times are ISO-8601. A page token belongs to the same filters.
        """
        request = pb.ListPlanningCeremonyInstancesRequest(
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
        return await self._call(self._stub.ListPlanningCeremonyInstances, request)

    async def decide(
        self,
        instance_id: str,
        *,
        approved: bool,
        actor: str,
        role: str,
        step_id: str | None = None,
        guard: str | None = None,
        visit: int | None = None,
        comment: str = "",
    ) -> pb.PlanningCeremonyInstance:
        """Approve or reject either a gate step or a human guard; returns the ceremony after the decision."""
        if (step_id is None) == (guard is None):
            raise ValueError("name the gate by step_id or by guard, exactly one of them")
        request = pb.DecideGateRequest(
            instance_id=instance_id,
            approved=approved,
            visit=visit,
            actor=actor,
            role=role,
            comment=comment,
            request_id=_request_id(),
        )
        # A oneof keeps the field that is set last, even an empty string: set only the given one.
        if step_id is not None:
            request.step_id = step_id
        elif guard is not None:
            request.guard = guard
        return (await self._call(self._stub.DecideGate, request)).ceremony

    async def trigger(
        self, instance_id: str, trigger: str, *, actor: str, role: str, reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Fire a transition; returns the ceremony after it."""
        request = pb.TriggerTransitionRequest(
            instance_id=instance_id,
            trigger=trigger,
            actor=actor,
            role=role,
            reason=reason,
            request_id=_request_id(),
        )
        return (await self._call(self._stub.TriggerTransition, request)).ceremony

    async def cancel(
        self, instance_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """End a ceremony as CANCELLED; returns the ended ceremony."""
        request = pb.CancelCeremonyRequest(
            instance_id=instance_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.CancelCeremony, request)).ceremony

    async def pause(
        self, instance_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Pause a ceremony: answers are recorded, nothing starts."""
        request = pb.PauseCeremonyRequest(
            instance_id=instance_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.PauseCeremony, request)).ceremony

    async def resume(
        self, instance_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Resume a paused ceremony; returns it after the changes that followed at once."""
        request = pb.ResumeCeremonyRequest(
            instance_id=instance_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.ResumeCeremony, request)).ceremony

    async def retry_step(
        self, instance_id: str, step_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Give a FAILED step a new budget of attempts; opens a FAILED or TIMED_OUT ceremony again.

        An empty `step_id` is for each step that the time-out of a TIMED_OUT ceremony cancelled.
        """
        request = pb.RetryStepRequest(
            instance_id=instance_id, step_id=step_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.RetryStep, request)).ceremony

    async def run_step(
        self, instance_id: str, step_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Run a step that the start did not select."""
        request = pb.RunStepRequest(
            instance_id=instance_id, step_id=step_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.RunStep, request)).ceremony

    async def history(self, instance_id: str, *, limit: int = 200) -> pb.GetHistoryResponse:
        """The newest events of a ceremony, oldest first, at most 1,000; `complete` is True if these are all."""
        return await self._call(self._stub.GetHistory, pb.GetHistoryRequest(instance_id=instance_id, limit=limit))

    async def history_pages(self, instance_id: str, *, limit: int = 200) -> AsyncIterator[pb.GetHistoryResponse]:
        """All events of a ceremony from its first on, in pages of at most `limit`; a page may be empty.

        On the last page `complete` is True if nothing is missing.
        """
        token = ""
        while True:
            request = pb.GetHistoryRequest(instance_id=instance_id, limit=limit, whole=True, page_token=token)
            page = await self._call(self._stub.GetHistory, request)
            yield page
            token = page.next_page_token
            if not token:
                return

    async def dead_letter(self, origin: str, partition: int, offset: int) -> pb.ShowDeadLetterResponse:
        """One dead letter with headers and body, by the position of its original."""
        request = pb.ShowDeadLetterRequest(origin=origin, partition=partition, offset=offset)
        return await self._call(self._stub.ShowDeadLetter, request)

    async def replay_dead_letter(
        self, origin: str, partition: int, offset: int, *, actor: str, reason: str = "", request_id: str | None = None
    ) -> pb.ReplayDeadLetterResponse:
        """Send a dead letter's original back to its topic, once for each request id (default: a new id)."""
        request = pb.ReplayDeadLetterRequest(
            origin=origin,
            partition=partition,
            offset=offset,
            actor=actor,
            reason=reason,
            request_id=request_id or _request_id(),
        )
        return await self._call(self._stub.ReplayDeadLetter, request)

    async def diagnose(self, instance_id: str | None = None) -> pb.DiagnoseResponse:
        """Diagnose one ceremony or the whole engine: everything stuck or waiting, with reasons and remedies."""
        return await self._call(self._stub.Diagnose, pb.DiagnoseRequest(instance_id=instance_id))

    async def watch(self, instance_id: str) -> AsyncIterator[pb.PlanningCeremonyInstance]:
        """The ceremony now and after each change, until it has ended."""
        try:
            async for response in self._stub.WatchPlanningCeremony(
                pb.WatchPlanningCeremonyRequest(instance_id=instance_id)
            ):
                yield response.ceremony
        except grpc.aio.AioRpcError as error:
            raise PlanningCeremonyError(error.code(), error.details() or "") from None

    async def dead_letters(
        self, *, topic: str | None = None, limit: int = 100, offset: int = 0
    ) -> pb.ListDeadLettersResponse:
        """A page of dead letters, newest first: `dead_letters`, and the `total_count` of all matches.

        With `topic` only dead letters from this topic or NATS stream.
        """
        request = pb.ListDeadLettersRequest(topic_filter=topic, limit=limit, offset=offset)
        return await self._call(self._stub.ListDeadLetters, request)

    async def definitions(self) -> Sequence[pb.DefinitionSummary]:
        """The present definitions of the engine, by name; invalid ones with their problems."""
        response = await self._call(self._stub.ListDefinitions, pb.ListDefinitionsRequest())
        return response.definitions

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return await method(request, timeout=max(deadline - time.monotonic(), 0.001))
            except grpc.aio.AioRpcError as error:
                refused = _refused(error)
            pause = _pause(refused)
            if pause is None or time.monotonic() + pause >= deadline:
                raise refused
            await asyncio.sleep(pause)


def _refused(error: grpc.aio.AioRpcError) -> PlanningCeremonyError:
    hint = next((str(value) for key, value in error.trailing_metadata() or () if key == RETRY_KEY), "")
    return PlanningCeremonyError(error.code(), error.details() or "", int(hint) / 1000 if hint.isdigit() else None)


def _pause(refused: PlanningCeremonyError) -> float | None:
    """Seconds until the call is repeated, random so that calls refused together are not repeated together."""
    if refused.status is not grpc.StatusCode.RESOURCE_EXHAUSTED or refused.retry_after is None:
        return None
    return refused.retry_after * random.uniform(0.5, 1.5)  # noqa: S311 - no secret


def _request_id() -> str:
    return uuid4().hex


def _exact(name: str, value: Any) -> Any:
    """Return a value for a Struct, which holds doubles; JSON text instead where a whole number would be rounded."""
    if not _rounded(value):
        return value
    if isinstance(value, Mapping | Sequence):
        return json.dumps(value)
    message = f"inputs_invalid: {name}: a whole number beyond 2^53 is rounded; give it as text, or inside a list"
    raise PlanningCeremonyError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _rounded(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_rounded, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return any(map(_rounded, value))
    return isinstance(value, int) and abs(value) > LARGEST_EXACT
